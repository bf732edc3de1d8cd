"""From text to SDXL's conditioning, also beyond the text encoders' 77 tokens.

Duty: split a long prompt into windows of 75 tokens, encode each, join them along the sequence.
Must not know: LoRAs, schedulers, images.

What a window is: `<start>` + up to 75 tokens + `<end>`, padded to 77, as CLIP was trained. The
joined embedding is (1, 77·n, C) with C = both encoders' widths together; the pooled embedding is
the first window's, (1, P), which is what carries the picture's subject.

What a weight w does: a token's embedding z becomes z₀ + w·(z − z₀), z₀ being the empty prompt's at
the same place: 0 takes the words away, 2 doubles how far they lead. Tokens of weight 1 keep their
embedding's very bits, and the pooled embedding knows no weights. A prompt of one window without
weights gives exactly what the diffusers pipeline computes.

Words that change over the steps are encoded once for each text, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdxl_contract.errors import InvalidPrompt
from sdxl_contract.prompts.weights import Fragment
from sdxl_contract.prompts.words import PromptSyntax, Timeline, Words, read_words
from sdxl_worker.embeddings import Embedding, Vocabulary

_WINDOW = 75
# Over all texts of a request with embeddings, of which one word may be a whole window.
_WINDOWS_MAX = 320

# Token ids with their weights, in order.
_Tokens = list[tuple[int, float]]


class EncodeText(Protocol):
    """Calls a text encoder."""

    def __call__(self, number: int, ids: Tensor, skip: int, /) -> tuple[Tensor, Tensor]:
        """Of encoder 1 or 2 for token ids (n, 77): the hidden states (n, 77, C) of the last layer
        but one, and but `skip` more, and its first output.
        """


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is conditioned on. Shapes: (1, 77·n, C), (1, P); the negative ones likewise."""

    prompt: Tensor
    pooled: Tensor
    negative_prompt: Tensor
    negative_pooled: Tensor


def encode_prompts(
    pipe: Any, prompt: str, negative_prompt: str, encode: EncodeText | None = None
) -> Conditioning:
    """The conditioning of two prompts that are the same in every step; see `encode_words`.

    Raises:
        InvalidPrompt: a weight in one of the texts cannot be read.
    """
    syntax = PromptSyntax.WEIGHTS
    sides = (
        read_words(prompt, syntax, 1),
        read_words(negative_prompt, syntax, 1, "negative_prompt"),
    )
    return encode_words(pipe, sides, encode)[0]


def encode_words(
    pipe: Any,
    sides: tuple[Timeline, Timeline],
    encode: EncodeText | None = None,
    skip: int = 0,
    embeddings: Sequence[Embedding] = (),
) -> list[Conditioning]:
    """The conditioning of each step for classifier-free guidance: the same object while the words
    stay. All are of the same length, on both sides.

    Empty negative words mean zeros where the model's folder asks for it
    (`force_zeros_for_empty_prompt`, as SDXL's does).

    Args:
        encode: how encoder 1 or 2 is called; as it is unless given.
        skip: layers left out beyond the last one: diffusers' `clip_skip`, which leaves the
            negative side alone.
        embeddings: words of their own, in any of the texts.

    Raises:
        InvalidPrompt: the embeddings make the texts too long.
    """
    vocabulary = Vocabulary(embeddings)
    encoders = (
        _Encoder(1, pipe.text_encoder, pipe.tokenizer, encode, vocabulary),
        _Encoder(2, pipe.text_encoder_2, pipe.tokenizer_2, encode, vocabulary),
    )
    split = [
        [[encoder.windows(words) for encoder in encoders] for words in side.texts] for side in sides
    ]
    count = max(len(windows) for side in split for text in side for windows in text)
    if embeddings and count * sum(map(len, split)) > _WINDOWS_MAX:
        raise InvalidPrompt(
            f"prompt: with its embeddings it becomes too long: at most {_WINDOWS_MAX} windows of "
            f"{_WINDOW} tokens, both prompts together",
            details={"field": "prompt", "maximum": _WINDOWS_MAX},
        )
    ids = [
        encoder.place(texts) for encoder, texts in zip(encoders, _by_encoder(split), strict=True)
    ]
    models = (pipe.text_encoder, pipe.text_encoder_2)
    with vocabulary.put_in(list(zip(models, ids, strict=True))):
        dtype = pipe.unet.dtype
        prompts = [_encode(encoders, text, count, dtype, skip) for text in split[0]]
        zeros = tuple(map(torch.zeros_like, prompts[0]))
        negatives = [
            zeros
            if pipe.config.force_zeros_for_empty_prompt and not words.text
            else _encode(encoders, text, count, dtype, 0)
            for words, text in zip(sides[1].texts, split[1], strict=True)
        ]
    found: dict[tuple[int, int], Conditioning] = {}
    steps = list(zip(sides[0].at, sides[1].at, strict=True))
    for one, other in steps:
        found.setdefault((one, other), Conditioning(*prompts[one], *negatives[other]))
    return [found[step] for step in steps]


def token_widths(pipe: Any) -> tuple[int, int]:
    """Of both text encoders' token embeddings."""
    first, second = (
        int(encoder.get_input_embeddings().weight.shape[1])
        for encoder in (pipe.text_encoder, pipe.text_encoder_2)
    )
    return first, second


def _by_encoder(split: list[list[list[list[_Tokens]]]]) -> list[list[_Tokens]]:
    """The windows of all texts of both sides, for each encoder."""
    return [
        [window for side in split for text in side for window in text[which]] for which in (0, 1)
    ]


def conditioning_at_calls(
    steps: Sequence[Conditioning], calls_per_step: int
) -> Callable[[int], Conditioning] | None:
    """Which conditioning the UNet's call of an index has; None where all have the same.

    Args:
        calls_per_step: 2 for samplers of two stages, whose last step has one.
    """
    if all(one is steps[0] for one in steps):
        return None
    return lambda index: steps[min(index // calls_per_step, len(steps) - 1)]


def _encode(
    encoders: Sequence[_Encoder],
    windows: Sequence[list[_Tokens]],
    count: int,
    dtype: torch.dtype,
    skip: int,
) -> tuple[Tensor, ...]:
    """Embeddings (1, 77·count, C) of both encoders side by side, and the pooled one (1, P)."""
    parts = []
    for encoder, split in zip(encoders, windows, strict=True):
        hidden, first = encoder.encode(split + [[]] * (count - len(split)), skip)
        parts.append(hidden)
    # Pooled of the second encoder: the first one has no projection.
    return torch.cat(parts, dim=-1).to(dtype), first.to(dtype)


class _Encoder:
    """One text encoder with its tokenizer."""

    def __init__(
        self,
        number: int,
        model: Any,
        tokenizer: Any,
        encode: EncodeText | None,
        vocabulary: Vocabulary,
    ) -> None:
        self._number = number
        self._vocabulary = vocabulary
        self._ids: dict[int, int] = {}
        self._encode = encode
        self._model = model
        self._tokenizer = tokenizer

    def windows(self, words: Words) -> list[_Tokens]:
        """The tokens in windows of at most 75, without start and end; at least one window."""
        return [window for piece in words.pieces for window in self._windows(piece)]

    def _windows(self, fragments: Sequence[Fragment]) -> list[_Tokens]:
        tokens = [
            (token, fragment.weight)
            for fragment in fragments
            for part in self._vocabulary.parts(fragment.text)
            for token in (part if isinstance(part, range) else self._tokens(part))
        ]
        pieces = []
        while len(tokens) > _WINDOW:
            cut = self._last_comma(tokens)
            pieces.append(tokens[:cut])
            tokens = tokens[cut:]
        return [*pieces, tokens]

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False
        )["input_ids"]
        return found

    def place(self, windows: list[_Tokens]) -> dict[int, int]:
        """Choose ids for the embeddings' vectors that none of all `windows` uses; number → id."""
        self._ids = self._vocabulary.ids({t for one in windows for t, _ in one}, self._tokenizer)
        return self._ids

    def encode(self, windows: list[_Tokens], skip: int = 0) -> tuple[Tensor, Tensor]:
        """Embeddings (1, 77·n, C) of n windows, weighted, and the first window's pooled (1, P)."""
        weighted = any(weight != 1.0 for window in windows for _, weight in window)
        rows = [
            self._padded([self._ids.get(token, token) for token, _ in window]) for window in windows
        ]
        hidden, output = self._run(rows, skip)
        if weighted:
            hidden = self._weigh(hidden, windows, skip)
        return hidden.reshape(1, -1, hidden.shape[-1]), output[:1]

    def _run(self, rows: list[list[int]], skip: int) -> tuple[Tensor, Tensor]:
        """The last hidden state but one, on which SDXL was trained, and the first output."""
        ids = torch.tensor(rows, device=self._model.device)
        if self._encode is not None:
            return self._encode(self._number, ids, skip)
        output = self._model(ids, output_hidden_states=True)
        return output.hidden_states[-2 - skip], output[0]

    def _weigh(self, hidden: Tensor, windows: list[_Tokens], skip: int) -> Tensor:
        """`hidden` (n, 77, C) with each token drawn away from, or towards, the empty prompt's."""
        empty = self._run([self._padded([])], skip)[0].float()
        weights = torch.ones(hidden.shape[:2])
        for number, window in enumerate(windows):
            # Place 0 is the start token.
            for place, (_, weight) in enumerate(window, start=1):
                weights[number, place] = weight
        factor = weights.unsqueeze(-1).to(hidden.device)
        moved = empty + factor * (hidden.float() - empty)
        return torch.where(factor == 1, hidden, moved.to(hidden.dtype))

    def _last_comma(self, tokens: _Tokens) -> int:
        """Where to cut the first window: after a comma of its last third if there is one."""
        comma = self._tokenizer(",", add_special_tokens=False)["input_ids"][-1]
        for place in range(_WINDOW - 1, _WINDOW * 2 // 3, -1):
            if tokens[place][0] == comma:
                return place + 1
        return _WINDOW

    def _padded(self, ids: list[int]) -> list[int]:
        tokenizer = self._tokenizer
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        return row + [tokenizer.pad_token_id] * (_WINDOW + 2 - len(row))
