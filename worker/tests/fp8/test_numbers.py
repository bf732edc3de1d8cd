"""Products of 8 bits: as close as their bits allow, found out where a device does them wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdxl_worker.fp8 import unet
from sdxl_worker.fp8.numbers import (
    E4M3,
    multiplies_by_rows,
    product,
    quantised,
    row_scales,
)

CPU = torch.device("cpu")
SHAPES = [(48, 64), (32, 160)]


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return made * torch.logspace(-4, 4, count)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_number_is_within_a_16th_of_itself_or_a_512th_of_its_rows_step(
    dtype: torch.dtype,
) -> None:
    matrix = rows(40, 96).to(dtype)
    small, scale = quantised(matrix)

    assert (small.dtype, scale.shape) == (E4M3, (40, 1))
    # 3 bits of mantissa: half a unit is a 16th; below E4M3's normal numbers, half of 2^-9.
    off = (small.float() * scale - matrix.float()).abs()
    assert bool((off <= torch.maximum(matrix.float().abs() / 16, scale / 1024) * 1.001).all())
    assert torch.equal(small.float().abs().amax(1), torch.full((40,), 448.0))
    assert torch.equal(scale, row_scales(matrix))


def test_rows_of_zeros_stay_zeros_and_what_is_no_number_stays_none() -> None:
    matrix = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [float("inf"), 1.0]])
    small, _ = quantised(matrix)

    assert small[0].float().tolist() == [0.0, 0.0]
    assert bool(small[1:].float().isnan().any(dim=1).all())


@pytest.mark.parametrize("by_rows", [True, False])
def test_a_product_is_that_of_the_quantised_rows(by_rows: bool) -> None:
    left, left_scale = quantised(rows(24, 64))
    right, right_scale = quantised(rows(48, 64, seed=1))
    found = product(
        left, left_scale, right, right_scale.t().contiguous(), by_rows=by_rows, dtype=torch.bfloat16
    )
    wanted = (left.double() * left_scale.double()) @ (right.double() * right_scale.double()).t()

    assert (found.shape, found.dtype) == ((24, 48), torch.bfloat16)
    error = (found.double() - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(error.max()) < 0.005
    beside = product(
        left, left_scale, right, right_scale.t(), by_rows=by_rows, dtype=torch.bfloat16,
        in_float32=True,
    )  # fmt: skip
    assert float(((beside - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 0.005


def test_a_device_that_takes_scales_of_rows_alone_multiplies_them_in_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert multiplies_by_rows(CPU, torch.bfloat16, SHAPES) is False
    plain = torch._scaled_mm

    def rowwise(*args: Any, **options: Any) -> Tensor:
        if options["scale_a"].numel() == 1:
            raise RuntimeError("Tensorwise scaling is not supported on this device")
        return plain(*args, **options)

    monkeypatch.setattr(torch, "_scaled_mm", rowwise)
    assert multiplies_by_rows(CPU, torch.bfloat16, SHAPES) is True


def test_wrong_random_and_missing_products_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch._scaled_mm

    def one_scale_for_all(left: Tensor, right: Tensor, **options: Any) -> Tensor:
        options["scale_a"] = options["scale_a"].mean().expand_as(options["scale_a"]).contiguous()
        return plain(left, right, **options) * (2.0 if options["scale_a"].numel() == 1 else 1.0)

    def random(*args: Any, **options: Any) -> Tensor:
        found = plain(*args, **options)
        return found * (1 + 0.001 * torch.rand(()))

    def none(*_: Any, **__: Any) -> Tensor:
        raise ValueError("Invalid scaling configuration")

    def last_column_missing(*args: Any, **options: Any) -> Tensor:
        found = plain(*args, **options)
        found[:, -1] = 0
        return found

    for broken in (one_scale_for_all, random, none, last_column_missing):
        monkeypatch.setattr(torch, "_scaled_mm", broken)
        assert multiplies_by_rows(CPU, torch.float32, SHAPES) is None, broken


@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_multiplies_rows_that_lie_in_a_row_however_its_input_does(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture whose channels come first, as the UNet hands it over: a GPU refuses anything else,
    the CPU does not."""
    taken: list[bool] = []

    def seen(left: Tensor, *arguments: Any, **options: Any) -> Tensor:
        taken.append(left.is_contiguous())
        return product(left, *arguments, **options)

    monkeypatch.setattr(unet, "product", seen)
    layer = unet.Fp8Linear(rows(48, 64).bfloat16(), None, by_rows=False)
    x = rows(count * 64, 16 * 16).bfloat16().view(count, 64, 256).transpose(1, 2)
    assert torch.equal(layer(x), layer(x.contiguous()))
    assert taken == [True, True]
