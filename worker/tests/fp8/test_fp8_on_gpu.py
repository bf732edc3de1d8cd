"""8 bits on a real GPU: right products, a copy that follows in graphs, pictures near exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sdxl_contract.request import GenerateRequest
from sdxl_worker.assembly import Assembly, assemble
from sdxl_worker.drawing import speeds
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.fp8.numbers import multiplies_by_rows, product, quantised
from sdxl_worker.fp8.unet import Fp8Linear
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.lora import parse_lora
from sdxl_worker.run import Run
from sdxl_worker.settings import DrawSpeed, Settings
from testkit.worker import MODEL, kohya_lora

DEVICE, BF16 = torch.device("cuda"), torch.bfloat16
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
        reason="no CUDA device with 8 bits here",
    ),
]
# SDXL's own: (N, K).
SHAPES = [(640, 640), (1280, 1280), (5120, 640), (10240, 1280), (640, 2560), (1280, 5120)]


def test_the_products_of_sdxls_layers_are_right_one_way_or_the_other() -> None:
    assert multiplies_by_rows(DEVICE, BF16, SHAPES) is not None


@pytest.mark.parametrize("rows", [1, 16, 154, 1000, 2048, 8192])
def test_any_number_of_rows_gives_the_same_as_a_product_in_32_bit(rows: int) -> None:
    by_rows = multiplies_by_rows(DEVICE, BF16, [(640, 640)])
    assert by_rows is not None
    left, left_scale = quantised(torch.randn(rows, 640, device=DEVICE, dtype=BF16))
    right, right_scale = quantised(torch.randn(640, 640, device=DEVICE, dtype=BF16))
    found = product(
        left, left_scale, right, right_scale.t().contiguous(), by_rows=by_rows, dtype=BF16
    )
    wanted = (left.double() * left_scale) @ (right.double() * right_scale).t()
    assert float((found.double() - wanted).norm() / wanted.norm()) < 0.05


def test_a_compiled_layer_gives_nearly_what_the_eager_one_does() -> None:
    by_rows = multiplies_by_rows(DEVICE, BF16, [(1280, 640)])
    assert by_rows is not None
    weight = torch.randn(1280, 640, device=DEVICE, dtype=BF16)
    bias = torch.nn.Parameter(torch.randn(1280, device=DEVICE, dtype=BF16), requires_grad=False)
    layer = Fp8Linear(weight, bias, by_rows=by_rows)
    normed = torch.nn.Sequential(torch.nn.LayerNorm(640, device=DEVICE, dtype=BF16), layer)
    x = torch.randn(2, 1024, 640, device=DEVICE, dtype=BF16)
    with torch.no_grad():
        eager = normed(x)
        compiled = speeds.compile_whole(normed)(x)
        exact = torch.nn.functional.linear(normed[0](x), weight, bias)
    for found in (eager, compiled):
        assert float((found - exact).float().norm() / exact.float().norm()) < 0.1


@pytest.fixture(scope="module")
def ready() -> Iterator[Assembly]:
    """A worker's parts that draw in 8 bit, but for the compiler."""
    patch = pytest.MonkeyPatch()
    patch.setattr(speeds, "compile_whole", lambda unet: unet)
    settings = Settings(base_model=str(MODEL), device="cuda", draw_speed=DrawSpeed.FP8)
    yield assemble(settings, load_model(settings), Fetcher(FetchPolicy(max_bytes=1)))
    patch.undo()


def drawn(drawer: Drawer, side: int) -> tuple[bytes, Any]:
    request = GenerateRequest(prompt="a red apple", steps=3, width=side, height=side, seed=5)
    run = Run(request, device=DEVICE, timeout_s=600)
    return drawer.draw(run)[0].image.tobytes(), run.drawing


def test_recordings_in_8_bit_see_every_lora_and_come_back(ready: Assembly) -> None:
    assert (ready.drawer.speed, ready.drawer.speeds_unavailable) == ("fp8", {})
    side = ready.model.limits.native_size
    targets = ready.patcher._targets
    loras = [
        parse_lora(kohya_lora(targets.shapes, seed=seed), targets).to(DEVICE) for seed in (1, 2)
    ]
    base, how = drawn(ready.drawer, side)
    assert (how.speed, how.steps_replayed, how.eager_because) == ("fp8", 3, {})
    twin = ready.drawer._calls._fast[0].call
    seen = {base}
    for applied in ([loras[0]], [loras[1]], loras, [loras[0]]):
        with ready.patcher.applied([(lora, 0.8) for lora in applied]):
            found, how = drawn(ready.drawer, side)
            assert how.steps_replayed == 3
            assert found == drawn(ready.drawer, side)[0]
            # Without recordings, from layers that are quantised here and now.
            for name, layer in twin.named_modules():  # type: ignore[attr-defined]
                if isinstance(layer, Fp8Linear):
                    kept = layer.weight8.detach().clone()
                    layer.requantise(targets.modules[f"unet.{name}"].weight)
                    assert torch.equal(kept.view(torch.uint8), layer.weight8.view(torch.uint8))
            recorder, ready.drawer._calls.static._recorder = (
                ready.drawer._calls.static._recorder, None
            )  # fmt: skip
            try:
                assert drawn(ready.drawer, side)[0] == found
            finally:
                ready.drawer._calls.static._recorder = recorder
            seen.add(found)
        assert drawn(ready.drawer, side)[0] == base
        ready.verify_full()
    assert len(seen) == 4

    exact = Drawer(ready.model)
    apart = [
        np.frombuffer(picture, np.uint8).astype(int) for picture in (base, drawn(exact, side)[0])
    ]
    assert 0 < float(np.abs(apart[0] - apart[1]).mean()) < 16
