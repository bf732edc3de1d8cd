"""What to do when memory runs out, and where a GPU's memory goes.

Duty: know an out-of-memory error by any of its names, let go of what a failed call still holds, say
what would need less, and whether a GPU is large enough for a second copy of the weights.
Must not know: how pictures are drawn.
"""

from __future__ import annotations

import traceback
from contextlib import suppress

import torch
from torch import nn

from sdxl_contract.errors import CudaOutOfMemory
from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import GenerateRequest
from sdxl_worker.loading.budgets import MemoryPlan, plan_memory

# Of errors that have no class of their own.
_WORDS = (
    "out of memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that the GPU or the computer ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def let_go(error: BaseException) -> None:
    """Give up the tensors that the functions through which `error` came still hold.

    Their local variables live as long as its traceback, and that as long as somebody waits for an
    answer: gigabytes, just when there are none. Afterwards the allocator gives back what is free.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        # Of frames that have ended; those that are still running are left alone.
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    # torch refuses while another thread captures a graph: what is free goes back the next time.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()  # which does nothing where CUDA is not in use


def too_little_for(
    request: GenerateRequest, limits: ModelLimits, size: tuple[int, int] | None = None
) -> CudaOutOfMemory:
    """The error that names what of `request` to make smaller; `size` is what was drawn."""
    size = size or request.size(limits)
    smaller = tuple(limits.nearest_side(side * 3 // 4) for side in size)
    hints = [f"{smaller[0]}x{smaller[1]}"] if smaller != size else []
    hints = ["a smaller hires.scale"] if request.hires is not None else hints
    hints += ["num_images 1"] if request.num_images > 1 else []
    hints += ["fewer LoRAs"] if not hints and request.lora_refs() else []
    return CudaOutOfMemory(
        f"not enough memory for {size[0]}x{size[1]}: try {' and '.join(hints) or 'again later'}",
        details={"width": smaller[0], "height": smaller[1]},
    )


def plan_for(
    device: torch.device,
    modules: list[nn.Module],
    *,
    copied: int,
    loras: int,
    graphs: int | None,
    fp8: int = 0,
) -> MemoryPlan | None:
    """How `device` is used; None on a CPU. LoRAs may change `copied` bytes of `modules`, of which
    copies in 8 bit take `fp8`."""
    if device.type != "cuda":
        return None
    total = int(torch.cuda.get_device_properties(device).total_memory)
    weights = sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    return plan_memory(total, weights=weights, copied=copied, loras=loras, graphs=graphs, fp8=fp8)
