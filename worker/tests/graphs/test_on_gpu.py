"""Real CUDA graphs: the same bits, weights seen in place, and service after whatever goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sdxl_contract.request import GenerateRequest
from sdxl_worker.assembly import Assembly, assemble
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.graphs import uploads as uploading
from sdxl_worker.graphs.calls import StaticCalls
from sdxl_worker.graphs.cuda import CudaRecorder
from sdxl_worker.graphs.uploads import Uploads, parsed_onto
from sdxl_worker.loading.onto_gpu import move_onto_gpu, send_early
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.loading.weight_reader import start_reading
from sdxl_worker.lora import LoraPatcher, lora_targets, parse_lora
from sdxl_worker.run import Run
from sdxl_worker.settings import Settings
from testkit.loras.making import lora_file, save, tiny_model
from testkit.worker import MODEL, SIDE, kohya_lora, settings

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture
def calls() -> Iterator[StaticCalls]:
    made = StaticCalls(CudaRecorder(DEVICE), 1 << 30)
    yield made
    made.drop_all()


def how(calls: StaticCalls) -> list[tuple[str, str | None]]:
    return [(how.value, why and why.value) for _, how, why in calls.take_counts()]


def doubled(calls: StaticCalls, size: int) -> list[tuple[str, str | None]]:
    """How a call of that shape was made."""
    x = torch.rand(size, device=DEVICE)
    assert torch.equal(calls.call("double", lambda x: x * 2, {"x": x}), x * 2)
    return how(calls)


def test_a_capture_that_cuda_breaks_off_leaves_everything_else_working(calls: StaticCalls) -> None:
    def waits(x: Tensor) -> Tensor:
        return x * x.sum().item()  # which no capture may do

    assert doubled(calls, 8) == [("captured", None)]
    x = torch.ones(4, device=DEVICE)
    for _ in range(2):
        assert torch.equal(calls.call("waits", waits, {"x": x}), x * 4)
        assert how(calls) == [("eager", "capture_failed")]

    torch.cuda.empty_cache()
    assert doubled(calls, 8) == [("replayed", None)]
    assert [doubled(calls, 16), doubled(calls, 16)] == [[("captured", None)], [("replayed", None)]]


def test_memory_that_runs_out_in_a_capture_is_told_from_a_failed_one(calls: StaticCalls) -> None:
    def cramped(x: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)
        return x * 2

    x = torch.ones(4, device=DEVICE)
    assert torch.equal(calls.call("cramped", cramped, {"x": x}), x * 2)
    assert how(calls) == [("eager", "memory")]
    assert [doubled(calls, 16), doubled(calls, 16)] == [[("captured", None)], [("replayed", None)]]


def test_a_recording_sees_weights_written_in_place_and_not_moved_ones(calls: StaticCalls) -> None:
    layer = torch.nn.Linear(64, 64, device=DEVICE).requires_grad_(False)
    x = torch.rand(2, 64, device=DEVICE)

    def call() -> Tensor:
        found: Tensor = calls.call("layer", layer, {"input": x})
        return found

    call()
    layer.weight.mul_(2)
    assert torch.equal(call(), layer(x))
    held = layer.weight.data  # which the recording still reads
    layer.weight.data = held * 2
    assert not torch.equal(call(), layer(x))
    assert [one for one, _ in how(calls)] == ["captured", "replayed"]


def test_a_pool_whose_recordings_are_gone_is_followed_by_another() -> None:
    recorder, x = CudaRecorder(DEVICE), torch.ones(4, device=DEVICE)
    for _ in range(3):
        recording = recorder.record(lambda: x * 2, "swaps")
        assert torch.equal(recording.replay(), x * 2)
        recording.discard()


def test_what_is_copied_beside_the_drawing_is_whole() -> None:
    source = torch.arange(1 << 22)
    uploads = Uploads(DEVICE)
    for _ in range(3):
        busy = torch.rand(2048, 2048, device=DEVICE) @ torch.rand(2048, 2048, device=DEVICE)
        found = uploads.run(lambda: source.to(DEVICE, non_blocking=True), lambda one: [one])
        assert torch.equal(found.cpu(), source)
        assert bool(torch.isfinite(busy).all())


def test_bytes_by_way_of_pinned_memory_are_whole_however_many() -> None:
    uploads = Uploads(DEVICE)
    assert uploads._staging is not None
    half = len(uploads._staging._chunks[0])
    for size in (0, 1, half - 1, half, half + 1, 2 * half, 5 * half + 3):
        source = torch.randint(256, (size,), dtype=torch.uint8)
        found = uploads.run(lambda source=source: uploads.staged(source), lambda one: [one])  # type: ignore[misc]
        assert torch.equal(found.cpu(), source)
    assert uploads._staging is not None


@pytest.mark.parametrize("ahead", [0, 1 << 40], ids=["ahead", "after"])
def test_a_lora_whose_bytes_are_given_away_is_the_same_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    monkeypatch.setattr(uploading, "_AHEAD_BYTES", ahead)
    model = tiny_model()
    targets = model.targets()
    data = save(lora_file(model, "lora"))
    expected = parse_lora(data, targets)
    there = bytearray(data)
    found = parsed_onto(
        DEVICE,
        Uploads(DEVICE),
        there,
        lambda elsewhere: parse_lora(there, targets, given_away=True, elsewhere=elsewhere),
    )
    # The file's own memory is not needed any more.
    there[:] = bytes(len(there))
    for name, layer in expected.layers.items():
        assert found.layers[name].bound == layer.bound
        for slot, tensor in layer.tensors.items():
            other = found.layers[name].tensors[slot]
            assert other.device.type == "cuda"
            assert torch.equal(other.cpu(), tensor)


@pytest.fixture(scope="module")
def ready() -> Assembly:
    settings = Settings(base_model=str(MODEL), device="cuda")
    return assemble(settings, load_model(settings), Fetcher(FetchPolicy(max_bytes=1)))


def drawn(drawer: Drawer, **fields: Any) -> tuple[bytes, Any]:
    values = {"prompt": "a red apple", "steps": 3, "width": SIDE, "height": SIDE, "seed": 5}
    run = Run(GenerateRequest(**(values | fields)), device=DEVICE, timeout_s=600)
    return drawer.draw(run)[0].image.tobytes(), run.drawing


def test_a_model_is_drawn_from_recordings_by_diffusers_bytes(ready: Assembly) -> None:
    eager = Drawer(ready.model)
    lora = parse_lora(kohya_lora(ready.patcher._targets.shapes), ready.patcher._targets)
    # Not the model that draws: whatever is another's on it would be so on both sides.
    loader: Any = diffusers.StableDiffusionXLPipeline
    pipe = loader.from_pretrained(str(MODEL), dtype=ready.model.dtype, add_watermarker=False)
    pipe.to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    peer = LoraPatcher(lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2))
    cases: list[dict[str, Any]] = [{}, {"scheduler": "ddim"}, {"scheduler": "heun"}, {"cfg": 1.0}]
    for loras in ([], [(lora.to(DEVICE), 0.8)], [(lora, 0.5)], []):
        with ready.patcher.applied(loras):
            for case in cases:
                expected, _ = drawn(eager, **case)
                assert drawn(ready.drawer, **case)[0] == expected, case
                found, how = drawn(ready.drawer, **case)
                assert found == expected, case
                assert (how.steps_captured, how.eager_because) == (0, {}), case
            with peer.applied(loras):
                plain = pipe(
                    "a red apple",
                    width=SIDE,
                    height=SIDE,
                    num_inference_steps=3,
                    guidance_scale=5.5,
                    generator=torch.Generator().manual_seed(5),
                )
            assert plain.images[0].tobytes() == drawn(ready.drawer)[0]
    ready.verify_full()


def test_weights_come_whole_by_way_of_pinned_memory() -> None:
    generator = torch.Generator().manual_seed(5)
    # Larger than a half of the pinned memory, smaller than one, and by channels.
    sides = [(3000, 3001), (7, 5), (3,), ()]
    tensors = [torch.randn(side, generator=generator).bfloat16() for side in sides]
    tensors.append(
        torch.randn(8, 4, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    )
    module = torch.nn.ParameterList(tensors)
    move_onto_gpu([module], DEVICE, torch.bfloat16)
    for found, known in zip(module, tensors, strict=True):
        assert found.device.type == "cuda"
        assert found.stride() == known.stride()
        assert torch.equal(found.cpu(), known.bfloat16())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_that_were_sent_early_are_the_same_and_hold_no_file_s_row(dtype: str) -> None:
    """As the files have them, and cast."""
    chosen = settings(device="cuda", dtype=dtype)
    reading = start_reading(MODEL, half=False)
    assert reading is not None
    send_early(reading, DEVICE)
    early, usual = load_model(chosen, reading).pipe, load_model(chosen).pipe
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        wanted = dict(getattr(usual, name).state_dict())
        for key, found in getattr(early, name).state_dict().items():
            assert torch.equal(found, wanted[key]), (name, key)
            assert found.is_cuda
            assert found.untyped_storage().nbytes() == found.nbytes, (name, key)
