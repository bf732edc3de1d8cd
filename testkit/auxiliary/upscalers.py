"""Upscalers with random weights, as their files have them."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Weights:
    """Random convolutions by name."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {}

    def conv(self, name: str, into: int, out: int) -> None:
        size = 1 / (3 * into**0.5)
        self.tensors[f"{name}.weight"] = (
            torch.randn(out, into, 3, 3, generator=self.generator) * size
        )
        self.tensors[f"{name}.bias"] = torch.randn(out, generator=self.generator) * 0.1


def esrgan(*, old: bool, width: int = 8, grow: int = 4, blocks: int = 2, into: int = 3) -> Tensors:
    """ESRGAN's tensors of scale 4, or 2 with 12 channels in."""
    made = Weights(1)
    first = "model.0" if old else "conv_first"
    made.conv(first, into, width)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for conv in range(1, 6):
                name = (
                    f"model.1.sub.{block}.RDB{dense}.conv{conv}.0"
                    if old
                    else f"body.{block}.rdb{dense}.conv{conv}"
                )
                made.conv(name, width + (conv - 1) * grow, width if conv == 5 else grow)
    rest = (
        [f"model.1.sub.{blocks}", "model.3", "model.6", "model.8"]
        if old
        else ["conv_body", "conv_up1", "conv_up2", "conv_hr"]
    )
    for name in rest:
        made.conv(name, width, width)
    made.conv("model.10" if old else "conv_last", width, 3)
    return made.tensors


def compact(*, width: int = 8, convs: int = 3, scale: int = 4) -> Tensors:
    """The compact network's tensors."""
    made = Weights(2)
    made.conv("body.0", 3, width)
    for number in range(convs):
        made.conv(f"body.{2 * number + 2}", width, width)
    made.conv(f"body.{2 * convs + 2}", width, 3 * scale**2)
    for number in range(convs + 1):
        made.tensors[f"body.{2 * number + 1}.weight"] = torch.rand(width, generator=made.generator)
    return made.tensors
