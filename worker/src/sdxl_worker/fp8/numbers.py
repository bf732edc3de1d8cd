"""Numbers of 8 bits: rows of E4M3 with a scale each, and products of them.

Duty: quantise rows, multiply, and find out by trying whether a device does it right.
Must not know: models, layers.

A row's scale is its largest magnitude over E4M3's largest number, so that no row is cut off and
none is squeezed because of another one. Sums use the tensor cores' fast accumulation: quicker, and
far below what 3 bits of mantissa lose before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import structlog
import torch
from torch import Tensor

log = structlog.get_logger()
E4M3 = torch.float8_e4m3fn
_LARGEST = float(torch.finfo(E4M3).max)
# Of a row of zeros, which must not divide by zero.
_LEAST_SCALE = 1e-12
# A wrong layout or scale is off by the whole; BF16 results and fast sums by a percent or two.
_TOLERANCE = 0.05
# The sides of a product must be multiples of it.
MULTIPLE = 16
_ROWS_TRIED = 512


def row_scales(matrix: Tensor) -> Tensor:
    """Float32 (R, 1), from a matrix (R, K)."""
    largest = torch.linalg.vector_norm(matrix, math.inf, dim=1, keepdim=True, dtype=torch.float32)
    scales: Tensor = (largest * (1 / _LARGEST)).clamp(min=_LEAST_SCALE)
    return scales


def quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K) as E4M3 and the scale of each row (R, 1).

    Numbers that are none stay so: a picture that overflows must not look like one that does not.
    """
    # Not `vector_norm`, whose way through a compiler is longer; the same values.
    largest = matrix.abs().amax(dim=1, keepdim=True).float()
    scale = (largest * (1 / _LARGEST)).clamp(min=_LEAST_SCALE)
    # Nothing lies beyond the largest number by more than float32's rounding, which E4M3 rounds off.
    return (matrix.float() / scale).to(E4M3), scale


def product(
    left: Tensor,
    left_scale: Tensor,
    right: Tensor,
    right_scale: Tensor,
    *,
    by_rows: bool,
    dtype: torch.dtype,
    in_float32: bool = False,
) -> Tensor:
    """(M, N) of `dtype`: `left` (M, K) times `right` (N, K) transposed, each with its scales.

    The one place that calls torch's product of 8 bits.

    Args:
        left_scale, right_scale: float32 (M, 1) and (1, N).
        by_rows: whether the device's product takes scales of rows itself; else they are multiplied
            in afterwards, which rounds once more.
        in_float32: multiply the same operands without torch's product of 8 bits: to measure on a
            CPU what 8 bits change, where that one takes minutes a picture on some processors.
    """
    if in_float32:
        return (left.float() @ right.t().float() * left_scale * right_scale).to(dtype)
    if by_rows:
        return torch._scaled_mm(
            left,
            right.t(),
            scale_a=left_scale,
            scale_b=right_scale,
            out_dtype=dtype,
            use_fast_accum=True,
        )
    one = torch.ones((), dtype=torch.float32, device=left.device)
    rough = torch._scaled_mm(
        left, right.t(), scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=True
    )
    return (rough.float() * left_scale * right_scale).to(dtype)


def multiplies_by_rows(
    device: torch.device, dtype: torch.dtype, shapes: Iterable[tuple[int, int]]
) -> bool | None:
    """How `device` multiplies weights (N, K) of these shapes, by trying: False with the rows'
    scales afterwards, True with them within, None if neither is right or gives the same bits twice.

    Afterwards first: once compiled it costs no pass of its own, and the product is quicker (on an
    H200 for SDXL's layers by 1.5 ms a step).
    """
    shapes = sorted(set(shapes))
    for by_rows in (False, True):
        try:
            if all(_is_right(device, dtype, shape, by_rows=by_rows) for shape in shapes):
                return by_rows
        except Exception as error:
            # With which kind a device says that it has no such product differs.
            log.info("fp8_product_missing", by_rows=by_rows, error=repr(error)[:300])
    return None


def _is_right(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int], *, by_rows: bool
) -> bool:
    generator = torch.Generator().manual_seed(0)
    sides = []
    for rows in (_ROWS_TRIED, shape[0]):
        matrix = torch.randn(rows, shape[1], generator=generator)
        # Rows of very different sizes: one scale for all would lose most of them.
        matrix *= torch.logspace(-3, 3, rows)[torch.randperm(rows, generator=generator)][:, None]
        sides.append(quantised(matrix.to(device, dtype)))
    (left, left_scale), (right, right_scale) = sides[0], (sides[1][0], sides[1][1].t().contiguous())

    def tried() -> Tensor:
        return product(left, left_scale, right, right_scale, by_rows=by_rows, dtype=dtype)

    found = tried()
    # On the CPU, where no setting makes products of float32 less exact.
    wanted = (left.cpu().float() * left_scale.cpu()) @ (
        right.cpu().float() * right_scale.cpu().t()
    ).t()
    rows_off = (found.cpu().float() - wanted).norm(dim=1) / wanted.norm(dim=1)
    columns_off = (found.cpu().float() - wanted).norm(dim=0) / wanted.norm(dim=0)
    worst = max(float(rows_off.max()), float(columns_off.max()))
    # Not `<=` alone: a comparison with what is no number is false.
    return worst <= _TOLERANCE and bool(torch.equal(found, tried()))
