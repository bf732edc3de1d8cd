"""From text to SDXL's conditioning, also beyond the text encoders' 77 tokens.

Duty: split a long prompt into windows of 75 tokens, encode each, join them along the sequence.
Must not know: LoRAs, schedulers, images.

What a window is: `<start>` + up to 75 tokens + `<end>`, padded to 77, as CLIP was trained. The
joined embedding is (1, 77·n, C) with C = both encoders' widths together; the pooled embedding is
the first window's, (1, P), which is what carries the picture's subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WINDOW = 75


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told. Shapes: (1, 77·n, C), (1, P); the negative ones likewise."""

    prompt: Tensor
    pooled: Tensor
    negative_prompt: Tensor
    negative_pooled: Tensor


def encode_prompts(pipe: Any, prompt: str, negative_prompt: str) -> Conditioning:
    """The conditioning for classifier-free guidance, both sides of the same length.

    An empty negative prompt means zeros where the model's folder says so
    (`force_zeros_for_empty_prompt`, as SDXL's does).
    """
    texts = (prompt, negative_prompt)
    windows = [
        [_windows(tokenizer, text) for text in texts]
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)
    ]
    count = max(len(side) for tokenizer in windows for side in tokenizer)
    embeds, pooled = [], []
    for side in range(len(texts)):
        parts = []
        first_pooled: Tensor | None = None
        for encoder, tokenizer, split in (
            (pipe.text_encoder, pipe.tokenizer, windows[0][side]),
            (pipe.text_encoder_2, pipe.tokenizer_2, windows[1][side]),
        ):
            ids = torch.tensor(
                [_padded(tokenizer, window) for window in split + [[]] * (count - len(split))],
                device=encoder.device,
            )
            output = encoder(ids, output_hidden_states=True)
            # SDXL was trained on the last layer but one.
            hidden = output.hidden_states[-2]
            parts.append(hidden.reshape(1, -1, hidden.shape[-1]))
            if encoder is pipe.text_encoder_2:
                first_pooled = output[0][:1]
        assert first_pooled is not None
        embeds.append(torch.cat(parts, dim=-1).to(pipe.unet.dtype))
        pooled.append(first_pooled.to(pipe.unet.dtype))
    if not negative_prompt and pipe.config.force_zeros_for_empty_prompt:
        embeds[1], pooled[1] = torch.zeros_like(embeds[0]), torch.zeros_like(pooled[0])
    return Conditioning(embeds[0], pooled[0], embeds[1], pooled[1])


def _windows(tokenizer: Any, text: str) -> list[list[int]]:
    """Token ids of `text` in pieces of at most 75, without start and end; at least one piece."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)[
        "input_ids"
    ]
    pieces = []
    while len(ids) > _WINDOW:
        cut = _last_comma(tokenizer, ids)
        pieces.append(ids[:cut])
        ids = ids[cut:]
    return [*pieces, ids]


def _last_comma(tokenizer: Any, ids: list[int]) -> int:
    """Where to cut the first window: after a comma of its last third if there is one."""
    comma = tokenizer(",", add_special_tokens=False)["input_ids"][-1]
    for place in range(_WINDOW - 1, _WINDOW * 2 // 3, -1):
        if ids[place] == comma:
            return place + 1
    return _WINDOW


def _padded(tokenizer: Any, ids: list[int]) -> list[int]:
    pad = tokenizer.pad_token_id
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return row + [pad] * (_WINDOW + 2 - len(row))
