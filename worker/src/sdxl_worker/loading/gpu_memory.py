"""Where a GPU's memory goes, and what would need less of it.

Must not know: how pictures are drawn.
"""

from __future__ import annotations

import torch
from torch import nn

from sdxl_contract.errors import CudaOutOfMemory
from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import GenerateRequest
from sdxl_worker.loading.budgets import MemoryPlan, plan_memory


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
