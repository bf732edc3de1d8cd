"""Drawing by recordings and by a compiled UNet: the same bytes, and what results say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import DrawingReport
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.drawing.speeds import FastUNet, Speeds
from sdxl_worker.graphs.calls import StaticCalls
from sdxl_worker.lora import parse_lora
from sdxl_worker.run import Run
from sdxl_worker.settings import DrawSpeed
from testkit.doubles.graphs import FakeRecorder
from testkit.worker import SIDE, RunningWorker

REPORTS: list[DrawingReport] = []
EXACT: dict[str, bytes] = {}
# The second and later ones are of other shapes than what these tests draw otherwise.
WISHES: list[dict[str, Any]] = [{}, {"prompt": "apple, " * 60}, {"cfg": 1.0}, {"side": 2 * SIDE}]


@pytest.fixture
def ready(worker: RunningWorker) -> Any:
    assert worker.engine._ready is not None
    return worker.engine._ready


def draw(drawer: Drawer, side: int = SIDE, on_step: Any = None, **fields: Any) -> bytes:
    values = {"prompt": "a red apple", "steps": 3, "width": side, "height": side, "seed": 5}
    run = Run(GenerateRequest(**(values | fields)))
    if on_step is not None:
        run.step = on_step  # type: ignore[method-assign]
    try:
        return drawer.draw(run)[0].image.tobytes()
    finally:
        assert run.drawing is not None
        REPORTS.append(run.drawing)


def exact(ready: Any, **fields: Any) -> bytes:
    """What the model draws eagerly; once for each wish, as it is the same each time."""
    wish = repr(sorted(fields.items()))
    if wish not in EXACT:
        EXACT[wish] = draw(Drawer(ready.model), **fields)
    return EXACT[wish]


def report() -> DrawingReport:
    """Of the last request."""
    return REPORTS[-1]


def recording(ready: Any, *fast: FastUNet) -> Drawer:
    """Fast UNets draw the size that these tests draw."""
    static = StaticCalls(FakeRecorder(), 10_000)
    calls = ModelCalls(ready.model.pipe, static, Speeds(fast), native_side=SIDE)
    return Drawer(ready.model, calls=calls)


def compiled_by(call: Callable[..., Any]) -> FastUNet:
    return FastUNet(DrawSpeed.COMPILED, call)


def test_recordings_draw_the_same_bytes_whatever_lora_is_applied(
    ready: Any, lora_data: bytes
) -> None:
    eager, drawer = Drawer(ready.model), recording(ready)
    lora = parse_lora(lora_data, ready.source._targets)
    base = draw(eager)
    assert draw(drawer) == base
    assert report().model_dump() == {
        "speed": "exact", "steps_replayed": 2, "steps_captured": 1, "steps_eager": 0,
        "eager_because": {}, "speeds_unavailable": {},
    }  # fmt: skip
    with ready.patcher.applied([(lora, 0.8)]):
        with_lora = draw(drawer)
        assert report().steps_replayed == 3
        assert with_lora == draw(eager)
    assert with_lora != base
    assert draw(drawer) == base
    # Both text encoders, too.
    replayed = {part for part, how, _ in drawer.counts if how.value == "replayed"}
    assert replayed == {"unet", "text_encoder_1", "text_encoder_2"}


def test_a_long_text_another_size_and_no_guidance_are_shapes_of_their_own(ready: Any) -> None:
    drawer = recording(ready)
    for fields in WISHES:
        expected = exact(ready, **fields)
        assert draw(drawer, **fields) == expected
        assert report().steps_captured == 1
    draw(drawer)
    assert report().steps_captured == 0


def test_samplers_that_count_in_integers_share_the_recordings(ready: Any) -> None:
    """Each kind of number would else be recorded, or compiled for minutes, within a request."""
    drawer = recording(ready)
    draw(drawer)
    for sampler in ("ddim", "dpmpp_2m", "heun"):
        expected = exact(ready, scheduler=sampler)
        assert draw(drawer, scheduler=sampler) == expected
        assert (report().steps_captured, report().steps_eager) == (0, 0), sampler


def test_memory_that_runs_out_in_the_vae_takes_the_recordings_before_it_fails_a_request(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawer, vae = recording(ready), ready.model.pipe.vae
    plain, decode = draw(drawer), vae.decode

    def cramped(*args: Any, **options: Any) -> Any:
        if drawer.graph_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*args, **options)

    monkeypatch.setattr(vae, "decode", cramped)
    assert draw(drawer) == plain
    assert drawer.graph_bytes == 0


def test_on_a_cpu_every_step_is_eager_and_says_why(ready: Any) -> None:
    drawer = Drawer(ready.model)
    draw(drawer)

    assert report().eager_because == {"no_gpu": 3}


@pytest.mark.parametrize("compiling", [False, True])
def test_other_attention_processors_than_the_recorded_ones_draw_eagerly(
    ready: Any, compiling: bool
) -> None:
    class Halved:
        """A plain object, as control and reference adapters are attached."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __call__(self, *args: Any, **options: Any) -> Any:
            return self.inner(*args, **options) / 2

    unet, before = ready.model.pipe.unet, dict(ready.model.pipe.unet.attn_processors)
    compiled = [compiled_by(lambda *args, **options: unet(*args, **options))] * compiling
    drawer = recording(ready, *compiled)
    plain = draw(drawer)
    unet.set_attn_processor({name: Halved(one) for name, one in before.items()})
    try:
        assert draw(drawer) != plain
        assert report().eager_because == {"attached": 3}
        # Compiled with what is attached it would be compiled within a request.
        assert report().speed == "exact"
    finally:
        unet.set_attn_processor(before)
    assert draw(drawer) == plain
    assert report().steps_replayed == 3


def test_a_word_put_in_by_a_hook_is_seen(ready: Any) -> None:
    drawer = recording(ready)
    plain = draw(drawer)
    embedding: nn.Module = ready.model.pipe.text_encoder.get_input_embeddings()
    hook: Callable[..., Any] = lambda module, inputs, output: output * 1.5  # noqa: E731
    handle = embedding.register_forward_hook(hook)
    try:
        assert draw(drawer) != plain
    finally:
        handle.remove()
    assert draw(drawer) == plain


def test_what_a_stopped_request_did_is_counted_and_leaves_the_next_one_right(ready: Any) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, *_: Any, **__: Any) -> None:
        if done == 2:
            raise Stop

    drawer = recording(ready)
    expected = exact(ready)
    with pytest.raises(Stop):
        draw(drawer, on_step=stop)
    assert report().steps_captured + report().steps_replayed == 2
    assert draw(drawer) == expected


def test_a_unet_that_cannot_be_compiled_is_drawn_exactly(ready: Any) -> None:
    tried: list[int] = []

    def broken(sample: torch.Tensor, timestep: torch.Tensor, **_: Any) -> Any:
        tried.append(1)
        raise RuntimeError("no compiler here")

    drawer = recording(ready, compiled_by(broken))
    expected = exact(ready)
    assert draw(drawer) == expected
    assert report().speed == drawer.speed == "exact"
    assert report().speeds_unavailable == {"compiled": "not_compiled"}
    draw(drawer)
    assert len(tried) == 1


def test_a_fast_unet_that_fails_or_draws_something_else_gives_its_place_to_the_next(
    ready: Any,
) -> None:
    pipe, given_up = ready.model.pipe, list[str]()

    def cramped(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(*args: Any, **options: Any) -> Any:
        return (pipe.unet(*args, **options)[0].flip(1),)

    def right(*args: Any, **options: Any) -> Any:
        return (pipe.unet(*args, **options)[0] * 1.01,)

    for broken, why in ((cramped, "memory"), (wrong, "wrong")):
        first = FastUNet(DrawSpeed.FP8, broken, lambda: given_up.append("fp8"))
        drawer = recording(ready, first, compiled_by(right))
        assert drawer.speed == "fp8"
        found = draw(drawer)
        assert (report().speed, report().speeds_unavailable) == ("compiled", {"fp8": why})
        # The request that found it out is drawn like every later one.
        assert draw(drawer) == found
    assert given_up == ["fp8", "fp8"]


def test_the_compiled_unet_draws_what_its_rule_covers_and_exact_the_rest(ready: Any) -> None:
    asked: list[tuple[int, ...]] = []
    pipe = ready.model.pipe

    def compiled(sample: torch.Tensor, timestep: torch.Tensor, **options: Any) -> Any:
        asked.append(tuple(sample.shape))
        return pipe.unet(sample, timestep, **options)

    drawer = recording(ready, compiled_by(compiled))
    expected = exact(ready)
    assert draw(drawer) == expected
    assert report().speed == "compiled"
    # By the shape alone: neither order nor company may decide.
    for fields in WISHES[1:]:
        asked.clear()
        draw(drawer, **fields)
        assert (report().speed, asked) == ("exact", [])


def decoding(ready: Any, decode: Callable[..., Any]) -> Drawer:
    """A drawer whose UNet and decoder are fast ones."""
    pipe = ready.model.pipe
    speeds = Speeds((compiled_by(pipe.unet),), decode=decode)
    static = StaticCalls(FakeRecorder(), 10_000)
    return Drawer(ready.model, calls=ModelCalls(pipe, static, speeds, native_side=SIDE))


def test_the_fast_decoder_decodes_what_fast_unets_drew_and_nothing_else(ready: Any) -> None:
    vae, asked = ready.model.pipe.vae, list[int]()

    def decode(latents: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        pixels: torch.Tensor = vae.decode(latents, return_dict=False)[0] + 0.02
        return pixels

    drawer = decoding(ready, decode)
    for _ in range(2):
        asked.clear()
        assert draw(drawer) != exact(ready)
        assert asked == [1]
    for fields in WISHES[1:]:
        asked.clear()
        assert draw(drawer, **fields) == exact(ready, **fields)
        assert asked == []


def test_a_decoder_that_fails_or_gives_other_pixels_is_tried_once(ready: Any) -> None:
    vae, asked = ready.model.pipe.vae, list[int]()

    def broken(_: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        raise RuntimeError("no compiler here")

    def upside_down(latents: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        pixels: torch.Tensor = -vae.decode(latents, return_dict=False)[0]
        return pixels

    for decode in (broken, upside_down):
        asked.clear()
        drawer = decoding(ready, decode)
        for _ in range(2):
            assert draw(drawer) == exact(ready)
            assert report().speed == "compiled"
        assert asked == [1]
