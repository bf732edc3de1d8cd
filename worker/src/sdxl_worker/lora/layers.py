"""The change that each kind of adapter makes to one weight: ΔW from its factors.

Duty: the maths, in the dtype it is asked for. Every function returns ΔW at strength 1, α / rank
included, shaped like the weight; nothing here writes a model.
Must not know: files, spellings, which model.

Sources: LoRA (Hu et al. 2021, arXiv 2106.09685); LoCon, LoHa, LoKr and their Tucker forms
(LyCORIS, Yeh et al. 2023, arXiv 2309.14859); DoRA (Liu et al. 2024, arXiv 2402.09353).
Shapes are those of `sdxl_contract.lora.shapes`, which has checked them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from sdxl_contract.lora.shapes import Algorithm, DoraAxis, ModulePlan
from sdxl_contract.lora.spelling import Slot


@dataclass(frozen=True)
class LayerDelta:
    """What one file changes in one module.

    Attributes:
        name: full module name.
        weight_shape: shape of the module's weight that `tensors` were checked against.
        tensors: factors by slot, on any device, as the file has them; 8-bit ones as F16.
        factor: α / rank, or 1 where the file states no α or the algorithm has none; times
            LyCORIS' trained scalar where there is one.
        bound: |ΔW| of no element is larger; infinite where that is not known.
    """

    name: str
    weight_shape: tuple[int, ...]
    plan: ModulePlan
    tensors: dict[Slot, Tensor]
    factor: float
    bound: float

    @cached_property
    def is_plain(self) -> bool:
        """Whether ΔW is one matrix product of two factors."""
        return self.plan.algorithm is Algorithm.LORA and self.plan.dora is None

    @cached_property
    def changes_weight(self) -> bool:
        """Whether the weight is changed; else only the bias is."""
        return self.plan.algorithm is not Algorithm.BIAS

    @cached_property
    def changes_bias(self) -> bool:
        """Whether the bias is changed."""
        return Slot.DIFF_B in self.tensors or Slot.UP_BIAS in self.tensors

    def matrices(self) -> tuple[Tensor, Tensor]:
        """`up` (out, r) and `down` (r, in·kernel) of a plain LoRA, in the file's dtype."""
        return _matrix(self.tensors[Slot.UP]), _matrix(self.tensors[Slot.DOWN])


def weight_delta(layer: LayerDelta, base: Tensor) -> Tensor:
    """ΔW at strength 1 for the pristine weight `base`, in `base`'s dtype and device.

    `base` should be float32 or float64: the sum with it is rounded to the weight's dtype once,
    by the caller.
    """
    parts = {slot: tensor.to(base.device, base.dtype) for slot, tensor in layer.tensors.items()}
    delta = _delta(layer, parts)
    if layer.plan.dora is None:
        return delta
    magnitude = parts.get(Slot.DORA, parts.get(Slot.MAGNITUDE))
    assert magnitude is not None
    return _dora(base, delta, magnitude, layer.plan.dora)


def _delta(layer: LayerDelta, parts: dict[Slot, Tensor]) -> Tensor:
    shape = layer.weight_shape
    match layer.plan.algorithm:
        case Algorithm.LORA:
            delta = _matrix(parts[Slot.UP]) @ _matrix(parts[Slot.DOWN])
        case Algorithm.TUCKER:
            up, down = _matrix(parts[Slot.UP]), _matrix(parts[Slot.DOWN])
            delta = torch.einsum("mn...,im,nj->ij...", parts[Slot.MID], up, down)
        case Algorithm.LOHA:
            delta = _loha_half(parts, Slot.HADA_T1, Slot.HADA_W1_A, Slot.HADA_W1_B)
            delta = delta * _loha_half(parts, Slot.HADA_T2, Slot.HADA_W2_A, Slot.HADA_W2_B)
        case Algorithm.LOKR:
            delta = _lokr(parts, shape)
        case Algorithm.FULL:
            delta = parts[Slot.DIFF]
        case Algorithm.BIAS:
            raise ValueError(f"{layer.name} changes only its bias")
    delta = delta.reshape(shape)
    return delta if layer.factor == 1 else delta * layer.factor


def _matrix(factor: Tensor) -> Tensor:
    """A factor of a convolution as a matrix: kernel and inputs in one side."""
    return factor if factor.ndim == 2 else factor.reshape(factor.shape[0], -1)


def _rebuilt(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """LyCORIS' Tucker form: core (m, n, *k), left (m, out), right (n, in) → (out, in, *k)."""
    return torch.einsum("mn...,mi,nj->ij...", core, left, right)


def _loha_half(parts: dict[Slot, Tensor], core: Slot, left: Slot, right: Slot) -> Tensor:
    if core in parts:
        rebuilt = _rebuilt(parts[core], parts[left], parts[right])
        return rebuilt.reshape(rebuilt.shape[0], -1)
    return _matrix(parts[left]) @ _matrix(parts[right])


def _lokr(parts: dict[Slot, Tensor], shape: tuple[int, ...]) -> Tensor:
    """kron(w1, w2): w1 (a, b), w2 (c, d, *kernel) → (a·c, b·d, *kernel)."""
    w1 = parts.get(Slot.LOKR_W1)
    if w1 is None:
        w1 = parts[Slot.LOKR_W1_A] @ parts[Slot.LOKR_W1_B]
    w2 = parts.get(Slot.LOKR_W2)
    if w2 is None and Slot.LOKR_T2 in parts:
        w2 = _rebuilt(parts[Slot.LOKR_T2], parts[Slot.LOKR_W2_A], parts[Slot.LOKR_W2_B])
    elif w2 is None:
        w2 = parts[Slot.LOKR_W2_A] @ _matrix(parts[Slot.LOKR_W2_B])
    (a, b), kernel = w1.shape, shape[2:]
    c, d = shape[0] // a, shape[1] // b
    w2 = w2.reshape(c, d * prod(kernel))
    # Blocks (a, c, b, d·k): the kernel stays innermost, which torch.kron would need 4-D w1 for.
    blocks = w1[:, None, :, None] * w2.reshape(c, d, -1).reshape(1, c, 1, -1)
    return blocks.reshape(a * c, b * d, *kernel)


def _dora(base: Tensor, delta: Tensor, magnitude: Tensor, axis: DoraAxis) -> Tensor:
    """m · (W0 + ΔW) / ‖W0 + ΔW‖ − W0, the norm per output row or per input column.

    The strength then is a straight line from W0, so that strength 0 is the base exactly.
    """
    changed = base + delta
    over = [dim for dim in range(base.dim()) if dim != (0 if axis is DoraAxis.OUTPUT else 1)]
    norm = torch.linalg.vector_norm(changed, dim=over, keepdim=True)
    # A row of zeros has no direction: it stays zero instead of becoming NaN.
    norm = torch.where(norm == 0, torch.ones_like(norm), norm)
    return changed * (magnitude.reshape(norm.shape) / norm) - base


def bias_delta(layer: LayerDelta, base: Tensor) -> Tensor:
    """Δbias at strength 1, in `base`'s dtype and device. α does not apply to plain deltas."""
    if Slot.UP_BIAS in layer.tensors:
        return layer.tensors[Slot.UP_BIAS].to(base.device, base.dtype) * layer.factor
    return layer.tensors[Slot.DIFF_B].to(base.device, base.dtype)
