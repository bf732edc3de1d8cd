"""What takes the place of a speed that cannot be had, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdxl_worker.drawing import speeds
from sdxl_worker.drawing.speeds import Without, choose, fp8_bytes, make_fp8, why_no_fp8
from sdxl_worker.fp8.unet import copy_bytes
from sdxl_worker.fp8.weights import Fp8Weights
from sdxl_worker.settings import DrawSpeed
from testkit.worker import RunningWorker, settings

CUDA, BF16 = torch.device("cuda"), torch.bfloat16


class Patcher:
    """Remembers who follows."""

    follower: Any = None

    def follow(self, follower: Any) -> None:
        self.follower = follower


@pytest.fixture
def ready(worker: RunningWorker) -> Any:
    assert worker.engine._ready is not None
    return worker.engine._ready


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "compile_whole", lambda unet: unet)


def chosen(ready: Any, wanted: DrawSpeed = DrawSpeed.FP8, **options: Any) -> Any:
    patcher = Patcher()
    values: dict[str, Any] = {"dtype": BF16, "room": True, "recorder": None}
    found = choose(
        wanted,
        ready.model.pipe,
        ready.patcher._targets,
        patcher,  # type: ignore[arg-type]
        **(values | options),
    )
    return [one.speed.value for one in found.fast], dict(found.without), patcher, found


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize(
    ("capability", "dtype", "why"),
    [((8, 0), BF16, Without.CARD), ((8, 6), BF16, Without.CARD), ((8, 9), BF16, None),
     ((9, 0), BF16, None), ((10, 0), BF16, None), ((9, 0), torch.float16, Without.PRECISION),
     ((9, 0), torch.float32, Without.PRECISION)],
)  # fmt: skip
def test_which_cards_and_precisions_are_tried(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: Any, why: Without | None
) -> None:
    card(monkeypatch, capability)
    assert why_no_fp8(CUDA, dtype) is why
    assert why_no_fp8(torch.device("cpu"), dtype) is Without.NO_GPU


def test_memory_is_set_aside_only_where_it_will_be_used(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, (9, 0))
    unet = ready.model.pipe.unet
    assert fp8_bytes(DrawSpeed.FP8, unet, CUDA, BF16) == 2 * copy_bytes(unet) > 0
    for wanted, dtype in ((DrawSpeed.COMPILED, BF16), (DrawSpeed.FP8, torch.float16)):
        assert fp8_bytes(wanted, unet, CUDA, dtype) == 0
    card(monkeypatch, (8, 6))
    assert fp8_bytes(DrawSpeed.FP8, unet, CUDA, BF16) == 0


def test_a_computer_without_a_gpu_draws_exactly_and_says_why(ready: Any) -> None:
    assert chosen(ready)[:2] == ([], {"fp8": "no_gpu"})
    assert chosen(ready, DrawSpeed.EXACT)[:2] == ([], {})
    assert chosen(ready, DrawSpeed.COMPILED)[:2] == (["compiled"], {})


def test_what_cannot_draw_in_8_bit_draws_compiled_and_says_why(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for why in (Without.CARD, Without.PRECISION):
        monkeypatch.setattr(speeds, "why_no_fp8", lambda *_, why=why: why)
        assert chosen(ready)[:2] == (["compiled"], {"fp8": why})
    monkeypatch.setattr(speeds, "why_no_fp8", lambda *_: None)
    assert chosen(ready, room=False)[:2] == (["compiled"], {"fp8": "memory"})

    monkeypatch.setattr(speeds, "multiplies_by_rows", lambda *_: None)
    assert chosen(ready)[:2] == (["compiled"], {"fp8": "check_failed"})

    def cramped(*_: Any) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(speeds, "multiplies_by_rows", cramped)
    assert chosen(ready)[:2] == (["compiled"], {"fp8": "memory"})


def test_eight_bits_are_tried_first_and_let_go_of_if_they_fail(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "why_no_fp8", lambda *_: None)
    # `fp8/test_numbers.py` has it tried: on a CPU, where there are no such products, it is slow.
    monkeypatch.setattr(speeds, "multiplies_by_rows", lambda *_: False)
    watched: list[Any] = []
    names, without, patcher, found = chosen(ready, watch=watched.append)
    assert (names, without) == (["fp8", "compiled"], {})
    assert isinstance(patcher.follower, Fp8Weights)
    assert [one is found.fast[0].call for one in watched] == [True]
    found.fast[0].give_up()
    # Nobody keeps its memory.
    assert watched[1:] == [None]
    assert patcher.follower is None


def test_the_twin_predicts_nearly_what_the_unet_does_and_is_seen_by_nobody(ready: Any) -> None:
    pipe = ready.model.pipe
    twin, _ = make_fp8(pipe.unet, ready.patcher._targets, by_rows=True)
    generator = torch.Generator().manual_seed(3)
    ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
    width = pipe.text_encoder_2.config.projection_dim
    arguments: dict[str, Any] = {
        "sample": torch.randn(1, 4, 8, 8, generator=generator), "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(
            1, 77, pipe.unet.config.cross_attention_dim, generator=generator
        ),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, width, generator=generator), "time_ids": ids
        },
    }  # fmt: skip
    with torch.no_grad():
        exact = pipe.unet(**arguments, return_dict=False)[0]
        found = twin.unet(**arguments, return_dict=False)[0]
    off = float((found - exact).norm() / exact.norm())
    assert 0 < off < 0.2
    ready.structure.verify()


def test_a_speed_that_cannot_draw_makes_no_start_longer(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU a picture of the native size would take minutes of each start."""
    from sdxl_worker import assembly
    from sdxl_worker.drawing import drawer

    assert worker.engine._ready is not None
    sizes: list[int] = []

    def noted(_: Any, run: Any) -> list[Any]:
        sizes.append(run.request.width)
        return []

    monkeypatch.setattr(drawer.Drawer, "draw", noted)
    for speed in ("exact", "fp8", "compiled"):
        sizes.clear()
        ready = assembly.assemble(
            settings(warmup=True, draw_speed=speed),
            worker.engine._ready.model,
            worker.engine._fetcher,
        )
        limits = ready.model.limits
        expected = [limits.native_size] * 2 if speed == "compiled" else [limits.min_side]
        assert sizes == expected, speed
        assert ready.drawer.speeds_unavailable == ({"fp8": "no_gpu"} if speed == "fp8" else {})
