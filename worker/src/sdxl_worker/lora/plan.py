"""What a set of LoRAs changes, in an order that does not depend on the request's.

Duty: the key by which two sets are the same, and which layers go into which tensor.
Must not know: the model's state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from sdxl_contract.errors import LoraLoadFailed
from sdxl_worker.lora.merge import Contribution
from sdxl_worker.lora.parse import ParsedLora

# A scale beyond this is a mistake whatever the contract's own range is.
_MAX_SCALE = 16.0

# What a tensor holds besides W0: (sha256, scale) of each LoRA in it.
ContentKey = tuple[tuple[str, float], ...]


class Plan(NamedTuple):
    """What a set of LoRAs changes.

    Attributes:
        contents: tensor name → what it holds with them.
        contributions: tensor name → what makes that of W0, in canonical order.
    """

    contents: dict[str, ContentKey]
    contributions: dict[str, list[Contribution]]

    def add(self, name: str, content: ContentKey, contribution: Contribution) -> None:
        """One LoRA more changes a tensor."""
        if name in self.contents:
            self.contents[name] += content
            self.contributions[name].append(contribution)
        else:
            self.contents[name] = content
            self.contributions[name] = [contribution]


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


def tensor_plan(active: list[tuple[ParsedLora, float]]) -> Plan:
    """The plan of LoRAs in canonical order."""
    plan = Plan({}, {})
    for lora, scale in active:
        # One object for all of its tensors: they are compared at each swap.
        alone: ContentKey = ((lora.sha256, scale),)
        for name, layer in lora.layers.items():
            contribution = (layer, scale)
            if layer.changes_weight:
                plan.add(f"{name}.weight", alone, contribution)
            if layer.changes_bias:
                plan.add(f"{name}.bias", alone, contribution)
    return plan
