"""Whether the tensors of one layer fit that layer, and which algorithm they make up.

Duty: slots with shapes + the layer's weight shape → a plan, or why they do not fit. Every check
is done on numbers from the header, so that nothing is allocated by the file's wish.
Must not know: values, torch, where the tensors come from.

Shapes, for a weight of `(out, in, *kernel)`:
    LoRA   down (r, in, *kernel), up (out, r); on a 1×1 or linear layer the ones may be left out
    Tucker down (r, in), up (out, r), mid (r, r, *kernel)
    LoHa   w1_a, w2_a (out, r); w1_b, w2_b (r, in·kernel)
           with t1, t2 (r, r, *kernel): w?_a (r, out), w?_b (r, in)
    LoKr   w1 (a, b) ⊗ w2 (c, d, *kernel), a·c = out, b·d = in, each whole or as a pair
    DoRA   magnitudes per output (out, 1…) or per input (1, in, 1…)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import prod
from typing import NamedTuple

from sdxl_contract.limits import LORA_MAX_RANK
from sdxl_contract.lora.spelling import Slot

Shape = tuple[int, ...]


class Algorithm(StrEnum):
    """How a layer's change is computed."""

    LORA = "lora"
    TUCKER = "tucker"
    LOHA = "loha"
    LOKR = "lokr"
    FULL = "full"
    BIAS = "bias"


class DoraAxis(StrEnum):
    """Over what a DoRA magnitude normalises: one number per output row, or per input column."""

    OUTPUT = "output"
    INPUT = "input"


class ModulePlan(NamedTuple):
    """How one layer is changed. `rank` is 0 where nothing is low-rank."""

    algorithm: Algorithm
    rank: int
    dora: DoraAxis | None


class Misfit(ValueError):
    """The tensors do not fit the layer; the text says why."""


_FAMILIES: dict[Algorithm, frozenset[Slot]] = {
    Algorithm.LORA: frozenset({Slot.DOWN, Slot.UP, Slot.MID, Slot.UP_BIAS}),
    Algorithm.LOHA: frozenset(slot for slot in Slot if slot.value.startswith("hada_")),
    Algorithm.LOKR: frozenset(slot for slot in Slot if slot.value.startswith("lokr_")),
    Algorithm.FULL: frozenset({Slot.DIFF}),
}


def plan_module(slots: Mapping[Slot, Shape], weight: Shape) -> ModulePlan:
    """The plan for a layer with a weight of shape `weight`.

    Raises:
        Misfit: a tensor is missing, is one too many, or has the wrong shape.
    """
    families = [kind for kind, members in _FAMILIES.items() if members & slots.keys()]
    if len(families) > 1:
        raise Misfit(f"mixes {' and '.join(families)}")
    if Slot.ALPHA in slots and prod(slots[Slot.ALPHA]) != 1:
        raise Misfit(f"alpha has the shape {_text(slots[Slot.ALPHA])} instead of one number")
    if Slot.SCALAR in slots and prod(slots[Slot.SCALAR]) != 1:
        raise Misfit(f"scalar has the shape {_text(slots[Slot.SCALAR])} instead of one number")
    for bias in (Slot.DIFF_B, Slot.UP_BIAS):
        if bias in slots and slots[bias] != weight[:1]:
            raise _wrong(bias.value, slots[bias], weight[:1])
    if {Slot.DIFF_B, Slot.UP_BIAS} <= slots.keys():
        raise Misfit("changes its bias in two ways")
    if not families:
        if Slot.DIFF_B not in slots or {Slot.DORA, Slot.MAGNITUDE} & slots.keys():
            raise Misfit("has an alpha or a magnitude but nothing to apply it to")
        return ModulePlan(Algorithm.BIAS, 0, None)
    if families[0] is Algorithm.FULL:
        if slots[Slot.DIFF] != weight:
            raise _wrong("diff", slots[Slot.DIFF], weight)
        if {Slot.DORA, Slot.MAGNITUDE} & slots.keys():
            raise Misfit("has a magnitude beside a plain difference")
        return ModulePlan(Algorithm.FULL, 0, None)
    if len(weight) < 2:
        raise Misfit(f"is a norm or bias of shape {_text(weight)}, which takes plain deltas only")
    planner = {Algorithm.LORA: _lora, Algorithm.LOHA: _loha, Algorithm.LOKR: _lokr}[families[0]]
    algorithm, rank = planner(slots, weight)
    _check_rank(rank)
    return ModulePlan(algorithm, rank, _dora(slots, weight))


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _wrong(what: str, found: Shape, wanted: Shape) -> Misfit:
    return Misfit(f"{what} is {_text(found)} and the layer needs {_text(wanted)}")


def _squeezed(shape: Shape) -> Shape:
    """A shape without the trailing 1×1 kernel that convolution factors carry."""
    return shape[:2] if shape[2:] and set(shape[2:]) == {1} else shape


def _need(slots: Mapping[Slot, Shape], *wanted: Slot) -> list[Shape]:
    missing = [slot.value for slot in wanted if slot not in slots]
    if missing:
        raise Misfit(f"lacks {' and '.join(missing)}")
    return [slots[slot] for slot in wanted]


def _expect(what: Slot, found: Shape, *allowed: Shape) -> None:
    if found not in allowed:
        raise _wrong(what.value, found, allowed[0])


def _check_rank(rank: int) -> None:
    # A rank above the layer's smaller side says nothing new, and is usual where LoRAs were joined.
    if rank > LORA_MAX_RANK:
        raise Misfit(f"has rank {rank}; at most {LORA_MAX_RANK} is read")


def _lora(slots: Mapping[Slot, Shape], weight: Shape) -> tuple[Algorithm, int]:
    down, up = _need(slots, Slot.DOWN, Slot.UP)
    out, inner, kernel = weight[0], weight[1], weight[2:]
    rank = down[0] if down else 0
    _expect(Slot.UP, _squeezed(up), (out, rank))
    if Slot.MID in slots:
        if not kernel:
            raise Misfit("has a Tucker core on a layer that is no convolution")
        _expect(Slot.DOWN, _squeezed(down), (rank, inner))
        _expect(Slot.MID, slots[Slot.MID], (rank, rank, *kernel))
        return Algorithm.TUCKER, rank
    if _squeezed(weight) == weight and kernel:
        _expect(Slot.DOWN, down, (rank, inner, *kernel))
    else:
        _expect(Slot.DOWN, _squeezed(down), (rank, inner))
    return Algorithm.LORA, rank


def _flattened(shape: Shape) -> Shape:
    """A factor of a convolution as the matrix it is used as: kernel and inputs in one side."""
    return (shape[0], prod(shape[1:])) if len(shape) > 2 else shape


def _loha(slots: Mapping[Slot, Shape], weight: Shape) -> tuple[Algorithm, int]:
    out, inner, kernel = weight[0], weight[1], weight[2:]
    parts = (Slot.HADA_W1_A, Slot.HADA_W1_B, Slot.HADA_W2_A, Slot.HADA_W2_B)
    w1_a, w1_b, w2_a, w2_b = _need(slots, *parts)
    rank = w1_b[0] if w1_b else 0
    if Slot.HADA_T1 in slots or Slot.HADA_T2 in slots:
        if not kernel:
            raise Misfit("has a Tucker core on a layer that is no convolution")
        core1, core2 = _need(slots, Slot.HADA_T1, Slot.HADA_T2)
        _expect(Slot.HADA_T1, core1, (rank, rank, *kernel))
        _expect(Slot.HADA_T2, core2, (rank, rank, *kernel))
        wanted = ((rank, out), (rank, inner))
    else:
        wanted = ((out, rank), (rank, inner * prod(kernel)))
    for slot, found, shape in zip(parts, (w1_a, w1_b, w2_a, w2_b), wanted * 2, strict=True):
        _expect(slot, _flattened(found), shape)
    return Algorithm.LOHA, rank


def _lokr(slots: Mapping[Slot, Shape], weight: Shape) -> tuple[Algorithm, int]:
    out, inner, kernel = weight[0], weight[1], weight[2:]
    rows1, columns1, rank1 = _kron_half(slots, Slot.LOKR_W1, Slot.LOKR_W1_A, Slot.LOKR_W1_B)
    if out % rows1 or inner % columns1:
        raise Misfit(f"lokr_w1 is {rows1} by {columns1}, which does not divide {_text(weight)}")
    rows2, columns2 = out // rows1, inner // columns1
    if Slot.LOKR_W2 in slots:
        if {Slot.LOKR_W2_A, Slot.LOKR_W2_B, Slot.LOKR_T2} & slots.keys():
            raise Misfit("has lokr_w2 both whole and as a pair")
        whole = (rows2, columns2, *kernel)
        _expect(Slot.LOKR_W2, slots[Slot.LOKR_W2], whole, _squeezed(whole))
        return Algorithm.LOKR, rank1
    w2_a, w2_b = _need(slots, Slot.LOKR_W2_A, Slot.LOKR_W2_B)
    rank2 = w2_b[0] if w2_b else 0
    if Slot.LOKR_T2 in slots:
        if not kernel:
            raise Misfit("has a Tucker core on a layer that is no convolution")
        _expect(Slot.LOKR_T2, slots[Slot.LOKR_T2], (rank2, rank2, *kernel))
        _expect(Slot.LOKR_W2_A, w2_a, (rank2, rows2))
        _expect(Slot.LOKR_W2_B, w2_b, (rank2, columns2))
    else:
        _expect(Slot.LOKR_W2_A, w2_a, (rows2, rank2))
        _expect(Slot.LOKR_W2_B, _flattened(w2_b), (rank2, columns2 * prod(kernel)))
    if rank1 and rank1 != rank2:
        raise Misfit(f"has two ranks, {rank1} and {rank2}")
    return Algorithm.LOKR, rank2


def _kron_half(
    slots: Mapping[Slot, Shape], whole: Slot, left: Slot, right: Slot
) -> tuple[int, int, int]:
    """Rows, columns and rank (0 where whole) of one factor of a Kronecker product."""
    if whole in slots:
        if {left, right} & slots.keys():
            raise Misfit(f"has {whole.value} both whole and as a pair")
        shape = slots[whole]
        if len(shape) != 2:
            raise Misfit(f"{whole.value} is {_text(shape)}, which is no matrix")
        return shape[0], shape[1], 0
    a, b = _need(slots, left, right)
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise Misfit(f"{left.value} {_text(a)} and {right.value} {_text(b)} do not multiply")
    return a[0], b[1], b[0]


def _dora(slots: Mapping[Slot, Shape], weight: Shape) -> DoraAxis | None:
    """The axis that a magnitude's shape says. On square layers (n, 1) and (1, n) still differ."""
    if Slot.DORA in slots and Slot.MAGNITUDE in slots:
        raise Misfit("has two magnitudes")
    out, inner = weight[0], weight[1]
    ones = (1,) * (len(weight) - 2)
    per_output = {(out,), (out, 1), (out, 1, *ones)}
    if Slot.MAGNITUDE in slots:
        # PEFT keeps a convolution's as (1, out, 1, 1), which is still one number per output.
        _expect(Slot.MAGNITUDE, slots[Slot.MAGNITUDE], (out,), *per_output, (1, out, *ones))
        return DoraAxis.OUTPUT
    if Slot.DORA not in slots:
        return None
    found = slots[Slot.DORA]
    if found in per_output:
        return DoraAxis.OUTPUT
    _expect(Slot.DORA, found, (1, inner, *ones), (1, inner))
    return DoraAxis.INPUT
