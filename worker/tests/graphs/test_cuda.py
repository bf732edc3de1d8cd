"""The recorder of a GPU, with a double of torch's own part: failed captures, pools, uploads."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sdxl_contract.errors import LoraLoadFailed
from sdxl_worker.graphs import uploads as uploading
from sdxl_worker.graphs.calls import StaticCalls
from sdxl_worker.graphs.cuda import CudaRecorder
from sdxl_worker.graphs.uploads import Uploads, moved_to, parsed_onto
from sdxl_worker.loading.onto_gpu import Staging
from sdxl_worker.lora import ParsedLora, parse_lora
from testkit.doubles.graphs import CudaDouble
from testkit.loras.making import lora_file, save, tiny_model

DEVICE = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    return CudaDouble(monkeypatch)


def called(calls: StaticCalls, size: int) -> list[tuple[str, str | None]]:
    """How a call of that shape was made."""
    x = torch.ones(size)
    assert torch.equal(calls.call("double", lambda x: x * 2, {"x": x}), x * 2)
    return [(how.value, why and why.value) for _, how, why in calls.take_counts()]


def test_after_a_capture_that_cuda_refuses_to_end_all_goes_on(cuda: CudaDouble) -> None:
    calls = StaticCalls(CudaRecorder(DEVICE), 1 << 30)
    assert called(calls, 1) == [("captured", None)]
    cuda.invalid = True
    assert called(calls, 2) == [("eager", "capture_failed")]

    assert cuda.underway == []
    torch.cuda.empty_cache()
    assert called(calls, 2) == [("eager", "capture_failed")]
    assert called(calls, 3) == [("captured", None)]
    assert called(calls, 3) == [("replayed", None)]
    calls.drop_all()
    # No pool is held by what is gone: neither by the broken capture nor by the recordings.
    assert set(cuda.counts.values()) == {0}


def test_what_a_failed_capture_leaves_behind_in_torch_is_what_the_double_shows(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the repair nothing could be recorded or given back any more."""
    monkeypatch.setattr(CudaRecorder, "_break_off", lambda *_: None)
    calls = StaticCalls(CudaRecorder(DEVICE), 1 << 30)
    cuda.invalid = True
    called(calls, 1)

    with pytest.raises(RuntimeError, match="captures_underway"):
        torch.cuda.empty_cache()
    assert called(calls, 2) == [("eager", "capture_failed")]


def workspaces(cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> tuple[object, list[object]]:
    """What the second of two recordings writes into, and what is free once the first is gone."""
    recorder = CudaRecorder(DEVICE)
    one, other = (recorder.record(lambda: torch.zeros(1), "kept") for _ in range(2))
    cuda.freed.clear()
    one.discard()
    return other._graph.workspace, cuda.freed  # type: ignore[union-attr]


def test_what_a_recording_writes_into_stays_when_another_is_discarded(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS has one workspace for each stream, and torch frees that with any graph's end."""
    used, freed = workspaces(cuda, monkeypatch)
    assert used is not None
    assert used not in freed
    # Control: as it is by itself.
    monkeypatch.setattr("sdxl_worker.graphs.cuda._free_workspaces", lambda: None)
    cuda.workspace = object()
    used, freed = workspaces(cuda, monkeypatch)
    assert used in freed


def test_memory_that_runs_out_in_a_capture_is_no_failed_capture(cuda: CudaDouble) -> None:
    runs: list[int] = []

    def cramped(x: Tensor) -> Tensor:
        runs.append(1)
        # Once eagerly and once to warm up; the next one is captured.
        if len(runs) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x * 2

    calls = StaticCalls(CudaRecorder(DEVICE), 1 << 30)
    calls.call("cramped", cramped, {"x": torch.ones(1)})
    assert [why and why.value for _, _, why in calls.take_counts()] == ["memory"]
    assert (cuda.underway, set(cuda.counts.values())) == ([], {0})
    assert called(calls, 1) == [("captured", None)]


def test_a_pool_whose_last_recording_went_is_not_recorded_in_again(cuda: CudaDouble) -> None:
    recorder = CudaRecorder(DEVICE)
    first, second = (recorder.record(lambda: None, "swaps") for _ in range(2))
    first.discard()
    first.discard()
    third = recorder.record(lambda: None, "swaps")
    assert len(cuda.counts) == 1
    second.discard()
    third.discard()
    recorder.record(lambda: None, "swaps")
    assert sorted(cuda.counts.values()) == [0, 1]


def test_work_that_a_broken_run_queued_is_waited_for(cuda: CudaDouble) -> None:
    def breaks() -> None:
        cuda.log.append("breaks")
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        CudaRecorder(DEVICE).record(breaks, "swaps")
    assert cuda.log == ["wait", "breaks", "wait"]


@pytest.fixture(scope="module")
def lora() -> ParsedLora:
    model = tiny_model()
    names = [name for name in model.targets().shapes if name.endswith("attn1.to_q")]
    return parse_lora(save(lora_file(model, "lora", modules=names)), model.targets())


def moved(cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch, lora: ParsedLora, to: Any) -> Any:
    marked: list[Tensor] = []
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, _: marked.append(tensor))
    monkeypatch.setattr(ParsedLora, "to", to)
    return moved_to(DEVICE, Uploads(DEVICE), lora), marked


def test_a_lora_is_whole_and_marked_as_in_use_when_it_is_on_the_gpu(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch, lora: ParsedLora
) -> None:
    found, marked = moved(cuda, monkeypatch, lora, lambda one, *_: one)

    assert found is lora
    assert cuda.log == ["synchronize"]
    # The file's one buffer.
    assert len(marked) == 1


def test_a_lora_for_which_the_gpu_has_no_room_stays_where_it_is(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch, lora: ParsedLora
) -> None:
    def full(*_: Any) -> ParsedLora:
        raise torch.OutOfMemoryError("CUDA out of memory")

    found, marked = moved(cuda, monkeypatch, lora, full)
    assert found is lora
    assert marked == []

    def broken(*_: Any) -> ParsedLora:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        moved(cuda, monkeypatch, lora, broken)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_file_s_bytes_are_on_their_way_while_it_is_read(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch, aligned: bool
) -> None:
    monkeypatch.setattr(uploading, "_AHEAD_BYTES", 0)
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    model = tiny_model()
    data = bytearray(save(lora_file(model, "lora")))
    if not aligned:
        # By one blank: its tensors are not used where they lie.
        size = int.from_bytes(data[:8], "little")
        data[8 + size : 8 + size] = b" "
        data[:8] = (size + 1).to_bytes(8, "little")
    expected = parse_lora(bytes(data), model.targets())
    uploads, threads = Uploads(torch.device("cpu")), list[str]()

    def noted(source: Tensor) -> Tensor:
        threads.append(threading.current_thread().name)
        return source.clone()

    monkeypatch.setattr(uploads, "staged", noted)
    found = parsed_onto(
        torch.device("cpu"),
        uploads,
        data,
        lambda there: parse_lora(data, model.targets(), given_away=True, elsewhere=there),
    )
    # The whole buffer, once.
    assert [name.startswith("upload") for name in threads] == [aligned]
    data[:] = bytes(len(data))
    for name, layer in expected.layers.items():
        for slot, tensor in layer.tensors.items():
            assert torch.equal(found.layers[name].tensors[slot], tensor)


def test_a_file_that_is_refused_or_has_no_room_is_told_as_ever(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch, lora: ParsedLora
) -> None:
    monkeypatch.setattr(uploading, "_AHEAD_BYTES", 0)
    uploads = Uploads(torch.device("cpu"))
    data = bytearray((8).to_bytes(8, "little") + b"{}      " + bytes(16))

    def refused(_: Any) -> ParsedLora:
        raise LoraLoadFailed("no LoRA")

    with pytest.raises(LoraLoadFailed, match="no LoRA"):
        parsed_onto(torch.device("cpu"), uploads, data, refused)

    def full(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(uploads, "staged", full)
    assert parsed_onto(torch.device("cpu"), uploads, data, lambda _: lora) is lora


class Event:
    """Says of a half of the staging memory whether its transfer was waited for."""

    made: ClassVar[list[Event]] = []

    def __init__(self) -> None:
        self.under_way = False
        self.waits = 0
        self.made.append(self)

    def record(self) -> None:
        assert not self.under_way, "a half was filled while it was on its way"
        self.under_way = True

    def synchronize(self) -> None:
        self.waits += self.under_way
        self.under_way = False


def test_bytes_go_by_pinned_halves_that_are_waited_for_before_they_are_filled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.made.clear()
    staging = Staging(torch.device("cpu"), chunk=8)
    for size in (0, 1, 8, 9, 16, 40, 41):
        source = torch.arange(size, dtype=torch.uint8)
        assert torch.equal(staging.copied(source), source)
    assert sum(event.waits for event in Event.made) > 10


@pytest.mark.parametrize("short", [False, True])
def test_where_nothing_can_be_pinned_bytes_go_without(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch, lora: ParsedLora, short: bool
) -> None:
    uploads = Uploads(torch.device("cpu"))
    monkeypatch.setattr(uploads, "_staging", None)
    for layer, other in zip(
        lora.layers.values(), lora.to("cpu", uploads.staged).layers.values(), strict=True
    ):
        for slot, tensor in layer.tensors.items():
            assert torch.equal(other.tensors[slot], tensor)

    class Broken(Staging):
        def __init__(self) -> None: ...

        def copied(self, source: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("out of memory") if short else RuntimeError("not pinned")

    monkeypatch.setattr(uploads, "_staging", Broken())
    source = torch.arange(5, dtype=torch.uint8)
    if short:
        # For which a LoRA stays where it is; the staging is as good as before.
        with pytest.raises(torch.OutOfMemoryError):
            uploads.staged(source)
        assert uploads._staging is not None
        return
    assert torch.equal(uploads.staged(source), source)
    assert uploads._staging is None
