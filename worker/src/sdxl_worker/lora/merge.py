"""Writes W0 + Σ sᵢ·ΔWᵢ into a weight in place, rounded once.

Duty: from a pristine tensor and the changes of some LoRAs to the merged tensor, at the speed of
the hardware and within one unit in the last place of exact arithmetic.
Must not know: which tensors are dirty, which request this is for.

Why 16-bit factors are not just cast to the weight's dtype: the files are mostly F16 (11 bits of
mantissa), the weights often BF16 (8 bits). Casting loses 3 bits of every factor, which showed as
errors far above one ulp of the merged weight. Instead a factor is split into BF16 pieces that add
up to it exactly, and the pieces' products are summed by one longer matrix product:
    (B₁ + B₂)(A₁ + A₂) = [B₁ B₁ B₂ B₂]·[A₁; A₂; A₁; A₂]
whose accumulation, and the sum with W0, are float32 inside the kernel. Moving the weights takes
longer than computing them, so that four times the rank costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product

import torch
from torch import Tensor

from sdxl_worker.lora.layers import LayerDelta, bias_delta, weight_delta

Contribution = tuple[LayerDelta, float]

# Elements of float32 scratch per step: small enough for a CPU's cache, large enough for a GPU.
_CPU_SCRATCH, _GPU_SCRATCH = 1 << 20, 1 << 26
# Bits of mantissa, the hidden one included.
# Factors of 64 bits are rounded to float32 first, where what is lost is below the sum's last place.
_MANTISSA = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 24}


def merge_weight(out: Tensor, base: Tensor, contributions: Sequence[Contribution]) -> bool:
    """`out` ← base + Σ s·ΔW in place.

    Args:
        out: the live weight; only its values change.
        base: its pristine values, on the same device, with the same shape, dtype and strides.
        contributions: at least one, in an order that does not depend on the request's.

    Returns:
        Whether the values need a look: False if they are known to be finite.
    """
    if all(layer.is_plain for layer, _ in contributions) and out.is_contiguous():
        _merge_plain(out.view(out.shape[0], -1), base.view(out.shape[0], -1), contributions)
        return not surely_finite(base, contributions)
    wide = base.to(_compute_dtype(base))
    total = wide.clone()
    for layer, strength in contributions:
        total.add_(weight_delta(layer, wide), alpha=strength)
    out.copy_(total)
    return True


def merge_bias(out: Tensor, base: Tensor, contributions: Sequence[Contribution]) -> bool:
    """`merge_weight` for a bias."""
    total = base.to(_compute_dtype(base), copy=True)
    for layer, strength in contributions:
        total.add_(bias_delta(layer, total), alpha=strength)
    out.copy_(total)
    return True


def surely_finite(base: Tensor, contributions: Sequence[Contribution]) -> bool:
    """Whether the factors' sizes alone rule out an overflow, without reading the result.

    Half of the dtype's range is left to the base weight, which a model that works never uses.
    """
    total = 0.0
    for layer, strength in contributions:
        total += abs(strength) * layer.bound
    return total < _half_of_range(base.dtype)


@cache
def _half_of_range(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max / 2


def _compute_dtype(base: Tensor) -> torch.dtype:
    """float64 where weights are float32 and float64 is not slow, else float32."""
    slow = base.device.type != "cpu"
    return torch.float64 if base.dtype == torch.float32 and not slow else torch.float32


def _merge_plain(out: Tensor, base: Tensor, contributions: Sequence[Contribution]) -> None:
    """All as one product: factors side by side along the rank, one write of `out`."""
    scales = [strength * layer.factor for layer, strength in contributions]
    pairs = [layer.matrices() for layer, _ in contributions]
    if has_exact_products(out):
        common = scales[0] if all(scale == scales[0] for scale in scales) else None
        blocks = [
            block
            for (up, down), scale in zip(pairs, scales, strict=True)
            for block in exact_blocks(
                _scaled(up, scale, common, out), down.to(out.device), out.dtype
            )
        ]
        left = torch.cat([up for up, _ in blocks], dim=1)
        right = torch.cat([down for _, down in blocks], dim=0)
        torch.addmm(base, left, right, alpha=1.0 if common is None else common, out=out)
        return
    _merge_in_scratch(out, base, pairs, scales)


def _scaled(up: Tensor, scale: float, common: float | None, out: Tensor) -> Tensor:
    """`up` on the device; times its scale where the LoRAs' scales differ."""
    up = up.to(out.device)
    return up if common is not None else up.float() * scale


def _merge_in_scratch(
    out: Tensor, base: Tensor, pairs: list[tuple[Tensor, Tensor]], scales: list[float]
) -> None:
    """Row by row in a wider dtype, for weights and devices without exact 16-bit products."""
    dtype, device = _compute_dtype(base), out.device
    left = torch.cat(
        [up.to(device, dtype) * scale for (up, _), scale in zip(pairs, scales, strict=True)], dim=1
    )
    right = torch.cat([down.to(device, dtype) for _, down in pairs], dim=0)
    limit = _CPU_SCRATCH if device.type == "cpu" else _GPU_SCRATCH
    rows = max(1, limit // out.shape[1])
    for start in range(0, out.shape[0], rows):
        part = slice(start, start + rows)
        scratch = base[part].to(dtype, copy=True)
        out[part].copy_(scratch.addmm_(left[part], right))


def exact_blocks(up: Tensor, down: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of 16-bit matrices of `dtype` whose products add up to `up @ down`.

    Stacks of matrices are split alike.

    Products below 2⁻²⁴ of the leading one are left out: float32 accumulation drops them anyway.
    """
    ups, downs = _pieces(up, dtype), _pieces(down, dtype)
    step = _MANTISSA[dtype]
    for (i, left), (j, right) in product(enumerate(ups), enumerate(downs)):
        if (i + j) * step < 24:
            yield left, right


def _pieces(factor: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """`factor` as a sum of matrices of `dtype`, exact to its own mantissa."""
    if factor.dtype == dtype:
        return [factor]
    # In float32 the rest is exact; and a CPU converts one kind of 16 bits to the other several
    # times faster by way of it than directly.
    left = factor.to(torch.float32, copy=True)
    pieces = [left.to(dtype)]
    for _ in range(-(-_MANTISSA[factor.dtype] // _MANTISSA[dtype]) - 1):
        left -= pieces[-1]
        pieces.append(left.to(dtype))
    return pieces


def has_exact_products(out: Tensor) -> bool:
    """Whether `addmm` into this weight accumulates in float32, rounds once, and is fast."""
    if out.dtype != torch.bfloat16:
        return False
    if out.device.type == "cpu" and not _multiplies_bf16():
        return False
    return _rounds_once(out.device)


@cache
def _multiplies_bf16() -> bool:
    """Whether the CPU has BF16 products of its own; without them they are slow."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    asked = (getattr(torch.cpu, name, None) for name in names)
    return any(ask is not None and ask() for ask in asked)


@cache
def _rounds_once(device: torch.device) -> bool:
    """Whether BF16 `addmm` on `device` is as exact as hoped: tried once, on a small product."""
    generator = torch.Generator().manual_seed(0)
    base, left, right = (
        torch.randn(64, 64, generator=generator).mul_(size).bfloat16() for size in (1.0, 0.1, 1.0)
    )
    # As weights are written: the answer is kept, whoever asks first.
    with full_precision():
        found = torch.addmm(base.to(device), left.to(device), right.to(device), alpha=0.3)
    exact = base.double() + 0.3 * (left.double() @ right.double())
    # Half a unit in the last place of the result, and float32's own error on the way there.
    unit = torch.ldexp(torch.ones_like(exact), torch.frexp(exact)[1] - _MANTISSA[torch.bfloat16])
    return bool(((found.cpu().double() - exact).abs() <= 0.5 * unit + 1e-5).all())


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products without TF32 and without reduced-precision sums; back as before after."""
    matmul = torch.backends.cuda.matmul
    names = (
        "allow_tf32",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
    )
    before = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)
