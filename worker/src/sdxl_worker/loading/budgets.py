"""Where a GPU's memory goes: decided once, at start, from sizes alone.

Duty: what is kept on the card, and how much of it graphs may take.
Must not know: torch, models, requests.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
# The driver's own part and the libraries' kernels and workspaces.
CONTEXT_BYTES = GIB
# What one picture of 1024x1024 takes beside the weights, decoded in 16 bit, and some to spare.
DRAWING_BYTES = 4 * GIB
# Set aside for the recordings of the native size; most of it is shared by their steps.
NATIVE_GRAPH_BYTES = 2 * GIB
# More than the usual sizes together need.
_GUESTS_MAX_BYTES = 8 * GIB
_OPERANDS_MAX_BYTES = 3 * GIB
_LORAS_MIN_BYTES = GIB


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one card.

    Attributes:
        weights: of the model.
        pristine: the copy W0 of what LoRAs may change; 0 where it is kept on the CPU.
        loras: parsed LoRAs, at most; 0 where they are kept on the CPU.
        native_graphs: recordings of the native size; 0 where there is no room for any.
        fp8: copies of weights in 8 bit; 0 where they are not wanted, or there is no room for both.
        operands: what is kept of sets of LoRAs that come again, to write them at once.
        guest_graphs: recordings of all other shapes.
        drawing: one picture in the making, and the driver's own part.
        left: what nothing claims; below zero the card is too small for a picture of 1024x1024.
    """

    total: int
    weights: int
    pristine: int
    loras: int
    native_graphs: int
    fp8: int
    operands: int
    guest_graphs: int
    drawing: int
    left: int


def plan_memory(
    total: int,
    *,
    weights: int,
    copied: int,
    loras: int,
    graphs: int | None = None,
    fp8: int = 0,
) -> MemoryPlan:
    """How a card of `total` bytes is used.

    What makes a swap fast comes first (pristine copy and LoRAs on the card), then graphs of the
    native size with copies in 8 bit, then graphs of other shapes. Whatever cannot be had is left
    out as a whole.

    Args:
        copied: bytes of the weights that LoRAs may change.
        loras: budget of the LoRA cache.
        graphs: of other shapes, as the settings have it; 0 is none at all, native ones included.
        fp8: of the live and the pristine copy in 8 bit, if there are to be such.
    """
    drawing = DRAWING_BYTES + CONTEXT_BYTES
    roomy = total >= weights + copied + loras + DRAWING_BYTES
    pristine, held = (copied, loras) if roomy else (0, 0)
    left = total - weights - pristine - held - drawing
    wanted_graphs = NATIVE_GRAPH_BYTES if graphs != 0 else 0
    if not roomy or wanted_graphs + fp8 - left > max(0, held - _LORAS_MIN_BYTES):
        fp8 = 0
    # A cache of LoRAs is as useful somewhat smaller; graphs of the native size are all or nothing.
    fixed = wanted_graphs + fp8
    missing = fixed - left
    if fixed and 0 < missing <= held - _LORAS_MIN_BYTES:
        held, left = held - missing, fixed
    left -= fp8
    native = wanted_graphs if left >= NATIVE_GRAPH_BYTES else 0
    left -= native
    # Of what the native recordings leave, half at most: four LoRAs of rank 32 want 3 GB.
    operands = min(max(0, left) // 2, _OPERANDS_MAX_BYTES) if pristine else 0
    left -= operands
    room = max(0, left) if native else 0
    guests = min(room, _GUESTS_MAX_BYTES if graphs is None else graphs)
    return MemoryPlan(
        total, weights, pristine, held, native, fp8, operands, guests, drawing, left - guests
    )
