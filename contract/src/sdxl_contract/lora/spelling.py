"""The spellings of adapter tensors: which part of which layer's change a key holds.

Duty: key → (stem, slot, style), by the key's ending alone. What a stem names is `lora_modules`'
question.
Must not know: shapes, values.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple


class Slot(StrEnum):
    """One tensor's part in the change of one layer."""

    DOWN = "lora_down"
    UP = "lora_up"
    MID = "lora_mid"
    ALPHA = "alpha"
    DORA = "dora_scale"
    # PEFT's DoRA magnitude: always one number per output, where `dora_scale` may be per input.
    MAGNITUDE = "lora_magnitude_vector"
    HADA_W1_A = "hada_w1_a"
    HADA_W1_B = "hada_w1_b"
    HADA_W2_A = "hada_w2_a"
    HADA_W2_B = "hada_w2_b"
    HADA_T1 = "hada_t1"
    HADA_T2 = "hada_t2"
    LOKR_W1 = "lokr_w1"
    LOKR_W1_A = "lokr_w1_a"
    LOKR_W1_B = "lokr_w1_b"
    LOKR_W2 = "lokr_w2"
    LOKR_W2_A = "lokr_w2_a"
    LOKR_W2_B = "lokr_w2_b"
    LOKR_T2 = "lokr_t2"
    DIFF = "diff"
    DIFF_B = "diff_b"
    # PEFT's `lora_bias`: added to the layer's bias, α / rank applies.
    UP_BIAS = "lora_up.bias"
    # LyCORIS' `use_scalar`: one trained number that the whole change is multiplied by.
    SCALAR = "scalar"


class SpelledKey(NamedTuple):
    """A key taken apart. `style` is kohya, diffusers, peft or lycoris."""

    stem: str
    slot: Slot
    style: str


_ENDINGS: dict[str, tuple[Slot, str]] = {
    "lora_down.weight": (Slot.DOWN, "kohya"),
    "lora_up.weight": (Slot.UP, "kohya"),
    "lora_mid.weight": (Slot.MID, "lycoris"),
    "lora.down.weight": (Slot.DOWN, "diffusers"),
    "lora.up.weight": (Slot.UP, "diffusers"),
    "lora_linear_layer.down.weight": (Slot.DOWN, "diffusers"),
    "lora_linear_layer.up.weight": (Slot.UP, "diffusers"),
    "lora_A.weight": (Slot.DOWN, "peft"),
    "lora_B.weight": (Slot.UP, "peft"),
    "lora_up.bias": (Slot.UP_BIAS, "kohya"),
    "lora_B.bias": (Slot.UP_BIAS, "peft"),
    "scalar": (Slot.SCALAR, "lycoris"),
    "lora_A": (Slot.DOWN, "peft"),
    "lora_B": (Slot.UP, "peft"),
    "lora_magnitude_vector": (Slot.MAGNITUDE, "peft"),
    "lora_magnitude_vector.weight": (Slot.MAGNITUDE, "peft"),
    "dora_scale": (Slot.DORA, ""),
    "diff": (Slot.DIFF, "lycoris"),
    "diff_b": (Slot.DIFF_B, "lycoris"),
    # LyCORIS' norm modules: the same plain deltas under other names.
    "w_norm": (Slot.DIFF, "lycoris"),
    "b_norm": (Slot.DIFF_B, "lycoris"),
} | {slot.value: (slot, "lycoris") for slot in Slot if slot.value.startswith(("hada_", "lokr_"))}

# PEFT puts the adapter's name between these two.
_ADAPTER_NAMED = {
    ("lora_A", "weight"): Slot.DOWN,
    ("lora_B", "weight"): Slot.UP,
    ("lora_B", "bias"): Slot.UP_BIAS,
    ("lora_magnitude_vector", "weight"): Slot.MAGNITUDE,
}
# Files of one trainer spell the same layers: those of a few of them. 10 MB of the longest names.
_REMEMBERED = 16_384
_PROCESSOR_SIDES = {"down": Slot.DOWN, "up": Slot.UP}


@lru_cache(_REMEMBERED)
def spell(key: str) -> SpelledKey | None:
    """`key` taken apart, or None where its ending is none of an adapter that is read."""
    parts = key.rsplit(".", 4)
    if parts[-1] == "alpha":
        # Of an attention processor, `…attn1.processor.to_q_lora.alpha`.
        owner = key[: -len(".alpha")].replace(".processor.", ".").removesuffix("_lora")
        return SpelledKey(owner, Slot.ALPHA, "") if owner else None
    for length in (3, 2, 1):
        found = _ENDINGS.get(".".join(parts[-length:])) if len(parts) > length else None
        if found is not None:
            return SpelledKey(key[: -len(".".join(parts[-length:])) - 1], *found)
    if len(parts) >= 4 and (parts[-3], parts[-1]) in _ADAPTER_NAMED:
        ending = ".".join(parts[-3:])
        return SpelledKey(key[: -len(ending) - 1], _ADAPTER_NAMED[parts[-3], parts[-1]], "peft")
    if len(parts) >= 3 and parts[-2] == "lora_magnitude_vector":
        ending = ".".join(parts[-2:])
        return SpelledKey(key[: -len(ending) - 1], Slot.MAGNITUDE, "peft")
    return _attention_processor(parts)


_PROCESSOR_PART = re.compile(r"(.+)_lora(\d?)")


def _attention_processor(parts: list[str]) -> SpelledKey | None:
    """`…attn1.processor.to_q_lora.down.weight`, also without `processor`. A number behind `_lora`
    stays: Flux' processors (XLabs) have two of each."""
    found = _PROCESSOR_PART.fullmatch(parts[-3]) if len(parts) >= 4 else None
    slot = _PROCESSOR_SIDES.get(parts[-2]) if len(parts) >= 4 else None
    if parts[-1] != "weight" or found is None or slot is None:
        return None
    owner = ".".join(parts[:-3])
    if found[2]:
        return SpelledKey(f"{owner}.{parts[-3]}", slot, "diffusers")
    return SpelledKey(f"{owner.removesuffix('.processor')}.{found[1]}", slot, "diffusers")
