"""What a set of LoRAs changes, in an order that does not depend on the request's.

Duty: the key by which two sets are the same, and which layers go into which tensor.
Must not know: the model's state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdxl_contract.errors import LoraLoadFailed
from sdxl_worker.lora.layers import LayerDelta
from sdxl_worker.lora.parse import ParsedLora

# A scale beyond this is a mistake whatever the contract's own range is.
_MAX_SCALE = 16.0

# What a tensor holds besides W0: (sha256, scale) of each LoRA in it.
ContentKey = tuple[tuple[str, float], ...]
# The same with the layer that changes the tensor.
Contributions = list[tuple[str, float, LayerDelta]]


def content_key(loras: Sequence[tuple[ParsedLora, float]]) -> ContentKey:
    """What a model with `loras` applied holds; equal for sets that give the same weights.

    Raises:
        LoraLoadFailed: a scale is not finite or beyond all reason.
    """
    return tuple((lora.sha256, scale) for lora, scale in canonical(loras))


def canonical(loras: Sequence[tuple[ParsedLora, float]]) -> list[tuple[ParsedLora, float]]:
    """Without those of scale 0, in an order that the request's does not change."""
    for _, scale in loras:
        if not math.isfinite(scale) or abs(scale) > _MAX_SCALE:
            raise LoraLoadFailed(
                f"A LoRA's scale is {scale}: it must be a number within ±{_MAX_SCALE:g}.",
                details={"reason": "scale"},
            )
    active = [(lora, float(scale)) for lora, scale in loras if scale != 0]
    return sorted(active, key=lambda pair: (pair[0].sha256, pair[1]))


def content(contributions: Contributions) -> ContentKey:
    """What a tensor with these contributions holds."""
    return tuple((sha256, scale) for sha256, scale, _ in contributions)


def tensor_plan(active: list[tuple[ParsedLora, float]]) -> dict[str, Contributions]:
    """Tensor name → what changes it, in canonical order."""
    plan: dict[str, Contributions] = {}
    for lora, scale in active:
        for name, layer in lora.layers.items():
            entry = (lora.sha256, scale, layer)
            if layer.changes_weight:
                plan.setdefault(f"{name}.weight", []).append(entry)
            if layer.changes_bias:
                plan.setdefault(f"{name}.bias", []).append(entry)
    return plan
