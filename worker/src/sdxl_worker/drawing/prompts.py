"""From text to SDXL's conditioning, also beyond the text encoders' 77 tokens.

Duty: split a long prompt into windows of 75 tokens, encode each, join them along the sequence.
Must not know: LoRAs, schedulers, images.

What a window is: `<start>` + up to 75 tokens + `<end>`, padded to 77, as CLIP was trained. The
joined embedding is (1, 77·n, C) with C = both encoders' widths together; the pooled embedding is
the first window's, (1, P), which is what carries the picture's subject.

What a weight w does (`prompt_syntax`): a token's embedding z becomes z₀ + w·(z − z₀), z₀ being the
empty prompt's at the same place: 0 takes the words away, 2 doubles how far they lead. Tokens of
weight 1 keep their embedding's very bits, and the pooled embedding knows no weights. A prompt of
one window without weights gives exactly what the diffusers pipeline computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdxl_contract.prompt_syntax import Fragment, parse_weights

_WINDOW = 75

# Token ids with their weights, in order.
_Tokens = list[tuple[int, float]]
# Which encoder, 1 or 2, and token ids (n, 77) → hidden states (n, 77, C) and the first output.
EncodeText = Callable[[int, Tensor], tuple[Tensor, Tensor]]


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
    """The conditioning for classifier-free guidance, both sides of the same length.

    An empty negative prompt means zeros where the model's folder asks for it
    (`force_zeros_for_empty_prompt`, as SDXL's does).

    Args:
        encode: how encoder 1 or 2 is called; as it is unless given.

    Raises:
        InvalidPrompt: a weight in one of the texts cannot be read.
    """
    sides = (parse_weights(prompt), parse_weights(negative_prompt, "negative_prompt"))
    encoders = (
        _Encoder(1, pipe.text_encoder, pipe.tokenizer, encode),
        _Encoder(2, pipe.text_encoder_2, pipe.tokenizer_2, encode),
    )
    windows = [[encoder.windows(fragments) for encoder in encoders] for fragments in sides]
    count = max(len(split) for side in windows for split in side)
    embeds, pooled = [], []
    for side in windows:
        parts = []
        for encoder, split in zip(encoders, side, strict=True):
            hidden, first = encoder.encode(split + [[]] * (count - len(split)))
            parts.append(hidden)
        embeds.append(torch.cat(parts, dim=-1).to(pipe.unet.dtype))
        # Of the second encoder: the first one has no projection.
        pooled.append(first.to(pipe.unet.dtype))
    if not negative_prompt and pipe.config.force_zeros_for_empty_prompt:
        embeds[1], pooled[1] = torch.zeros_like(embeds[0]), torch.zeros_like(pooled[0])
    return Conditioning(embeds[0], pooled[0], embeds[1], pooled[1])


class _Encoder:
    """One text encoder with its tokenizer."""

    def __init__(self, number: int, model: Any, tokenizer: Any, encode: EncodeText | None) -> None:
        self._number = number
        self._encode = encode
        self._model = model
        self._tokenizer = tokenizer

    def windows(self, fragments: list[Fragment]) -> list[_Tokens]:
        """The tokens in pieces of at most 75, without start and end; at least one piece."""
        tokens = [
            (token, fragment.weight)
            for fragment in fragments
            for token in self._tokenizer(
                fragment.text, add_special_tokens=False, truncation=False, verbose=False
            )["input_ids"]
        ]
        pieces = []
        while len(tokens) > _WINDOW:
            cut = self._last_comma(tokens)
            pieces.append(tokens[:cut])
            tokens = tokens[cut:]
        return [*pieces, tokens]

    def encode(self, windows: list[_Tokens]) -> tuple[Tensor, Tensor]:
        """Embeddings (1, 77·n, C) of n windows, weighted, and the first window's pooled (1, P)."""
        weighted = any(weight != 1.0 for window in windows for _, weight in window)
        rows = [self._padded([token for token, _ in window]) for window in windows]
        hidden, output = self._run(rows)
        if weighted:
            hidden = self._weigh(hidden, windows)
        return hidden.reshape(1, -1, hidden.shape[-1]), output[:1]

    def _run(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """The last hidden state but one, on which SDXL was trained, and the first output."""
        ids = torch.tensor(rows, device=self._model.device)
        if self._encode is not None:
            return self._encode(self._number, ids)
        output = self._model(ids, output_hidden_states=True)
        return output.hidden_states[-2], output[0]

    def _weigh(self, hidden: Tensor, windows: list[_Tokens]) -> Tensor:
        """`hidden` (n, 77, C) with each token drawn away from, or towards, the empty prompt's."""
        empty = self._run([self._padded([])])[0].float()
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
