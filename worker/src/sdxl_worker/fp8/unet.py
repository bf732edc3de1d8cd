"""A second UNet that shares every weight with the first but for its large linear layers.

Duty: which layers are multiplied in 8 bit, and a twin of the UNet in which they are. The first UNet
is not touched, so that what is proven of it holds.
Must not know: LoRAs, requests, how a UNet is called.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdxl_worker.fp8.numbers import E4M3, MULTIPLE, product, quantised, row_scales

_ENTRANCES = ("proj_in", "proj_out")
# Of text: a hundredth of the work, and what the picture listens to.
_TEXT = ("attn2.to_k", "attn2.to_v")


class Fp8Linear(nn.Module):
    """A linear layer that multiplies in 8 bit: rows of inputs are quantised as they come.

    Args:
        weight: (N, K), of the layer that it stands for; read now, and in `requantise`.
        bias: shared with that layer.
    """

    weight8: nn.Parameter
    scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, by_rows: bool) -> None:
        super().__init__()
        rows, columns = weight.shape
        on = weight.device
        empty8 = torch.empty(rows, columns, dtype=E4M3, device=on)
        self.weight8 = nn.Parameter(empty8, requires_grad=False)
        scale = torch.empty(1, rows, dtype=torch.float32, device=on)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias
        self.by_rows = by_rows
        self.requantise(weight)

    @torch.no_grad()
    def requantise(self, weight: Tensor) -> None:
        """Write the copy of these values into the memory of the one before."""
        scale = row_scales(weight)
        self.scale.copy_(scale.t())
        self.weight8.copy_(weight / scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) → (..., N)."""
        # The product takes rows that lie in a row, which a transposed picture's do not.
        rows, scale = quantised(x.reshape(-1, x.shape[-1]).contiguous())
        found = product(
            rows,
            scale,
            self.weight8,
            self.scale,
            by_rows=self.by_rows,
            dtype=x.dtype,
            in_float32=not x.is_cuda,
        )
        # Not within the product: what follows it is one kernel with it once compiled.
        if self.bias is not None:
            found = found + self.bias
        return found.view(*x.shape[:-1], found.shape[1])


def covered(unet: nn.Module) -> dict[str, nn.Linear]:
    """Name within the UNet → the layers that are multiplied in 8 bit: those of its transformers,
    but for what they make of the text. Convolutions and all that knows the time stay as they are.
    """
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
        and ("transformer_blocks" in name or name.endswith(_ENTRANCES))
        and not name.endswith(_TEXT)
        and not any(side % MULTIPLE for side in module.weight.shape)
    }


def shapes(unet: nn.Module) -> set[tuple[int, int]]:
    """(N, K) of the covered layers."""
    return {(one.weight.shape[0], one.weight.shape[1]) for one in covered(unet).values()}


def copy_bytes(unet: nn.Module) -> int:
    """Memory of one copy of the covered layers' weights in 8 bit, in bytes."""
    return sum(one.weight.numel() + 4 * one.weight.shape[0] for one in covered(unet).values())


@dataclass(frozen=True)
class Twin:
    """`unet` calls as the first one does; `layers` are its covered ones, by the same names."""

    unet: Any
    layers: dict[str, Fp8Linear]


def twin_of(unet: Any, *, by_rows: bool) -> Twin:
    """A UNet that shares all other parameters and buffers with `unet`, by object."""
    shared: dict[int, Any] = {id(one): one for one in (*unet.parameters(), *unet.buffers())}
    twin = copy.deepcopy(unet, shared)
    layers = {}
    for name, linear in covered(unet).items():
        parent, _, child = name.rpartition(".")
        bias = linear.bias if isinstance(linear.bias, nn.Parameter) else None
        layer = Fp8Linear(linear.weight.detach(), bias, by_rows=by_rows)
        twin.get_submodule(parent)._modules[child] = layer
        layers[name] = layer
    return Twin(twin.eval(), layers)
