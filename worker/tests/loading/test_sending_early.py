"""Weights go to a GPU while they are read: the same tensors, or those in the computer's memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor

from sdxl_contract.errors import ModelLoadFailed
from sdxl_worker import serve
from sdxl_worker.kernels import cuda as cuda_kernels
from sdxl_worker.loading import onto_gpu, pipeline, weight_reader
from sdxl_worker.loading.from_folder import pipeline_from_folder
from sdxl_worker.loading.onto_gpu import Staging, move, send_early
from sdxl_worker.loading.weight_reader import COMPONENTS, Reading
from testkit.worker import MODEL, settings

CPU = torch.device("cpu")
PLENTY = 1 << 40


class NoEvent:
    """A CPU copies at once."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of many parts, as large ones are; and a CPU that takes a GPU's calls."""
    monkeypatch.setattr(weight_reader, "_CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(torch.cuda, "Event", NoEvent)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (PLENTY, PLENTY))


def reading() -> Reading:
    return Reading(MODEL, half=False)


def all_of(one: Reading) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in COMPONENTS
        for name, tensor in one.tensors(part, None).items()
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], one) for name, one in wanted.items()
    )


def test_what_was_sent_is_what_the_files_hold() -> None:
    rows: list[Tensor] = []
    one = reading()

    def send(count: int, parts: Iterator[memoryview]) -> Tensor:
        assert threading.current_thread() is not threading.main_thread()
        rows.append(torch.cat([torch.frombuffer(part, dtype=torch.uint8) for part in parts]))
        assert len(rows[-1]) == count
        return rows[-1]

    one.pass_on(send)
    found = all_of(one)
    assert same(found, all_of(reading()))
    assert len(rows) == len(COMPONENTS)
    places = {row.untyped_storage().data_ptr() for row in rows}
    assert {tensor.untyped_storage().data_ptr() for tensor in found.values()} == places


def test_a_pipeline_of_what_was_sent_holds_no_file_s_row() -> None:
    one = reading()
    send_early(one, CPU)
    early = pipeline_from_folder(MODEL, one, torch.bfloat16, cast=False)
    usual = pipeline_from_folder(MODEL, reading(), torch.bfloat16)
    parts = [early.unet, early.vae, early.text_encoder, early.text_encoder_2]
    rows = {p.untyped_storage().data_ptr() for part in parts for p in part.parameters()}
    assert len(rows) == len(parts)

    move(parts, Staging(CPU), CPU, torch.bfloat16)
    for part, other in zip(
        parts, (usual.unet, usual.vae, usual.text_encoder, usual.text_encoder_2), strict=True
    ):
        assert same(part.state_dict(), other.state_dict())
    held = [p.untyped_storage() for part in parts for p in part.parameters()]
    assert all(one.nbytes() < 1 << 22 for one in held)
    assert not rows & {one.data_ptr() for one in held}


@pytest.mark.parametrize("fault", ["room", "no device", "pinned", "midway"])
def test_where_it_cannot_be_sent_it_is_here(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, sent = reading(), list[int]()

    class Breaks(Staging):
        def copy(self, source: Tensor, target: Tensor) -> None:
            sent.append(len(source))
            if len(sent) == 3 and fault == "midway":
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().copy(source, target)

    def raises(*_: Any) -> Any:
        raise RuntimeError("no NVIDIA driver")

    monkeypatch.setattr(onto_gpu, "Staging", raises if fault == "pinned" else Breaks)
    if fault == "no device":
        monkeypatch.setattr(torch.cuda, "device", raises)
    if fault == "room":
        least = 2 * one.nbytes + (2 << 30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (least - 1, PLENTY))
    send_early(one, CPU)
    assert same(all_of(one), all_of(reading()))
    assert bool(sent) is (fault == "midway")
    reasons = {"room": "twice", "no device": "driver", "pinned": "driver", "midway": "CUDA out"}
    assert one.stayed is not None
    assert reasons[fault] in one.stayed


def test_a_file_that_cannot_be_read_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(weight_reader, "_read_part", broken)
    one = reading()
    send_early(one, CPU)
    with pytest.raises(OSError, match="the disk"):
        one.tensors("unet", None)


def test_what_nobody_asks_for_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would hold it for as long as the process lives."""
    one = reading()
    send_early(one, CPU)
    monkeypatch.setattr(pipeline, "pipeline_from_folder", _does_not_fit)
    with structlog.testing.capture_logs():
        assert pipeline._from_reading(MODEL, one, torch.bfloat16, CPU) is None
    assert one.nbytes == 0


def test_a_load_that_failed_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_tokenizer(*_: Any, **__: Any) -> None:
        raise OSError("no tokenizer")

    one = reading()
    monkeypatch.setattr(pipeline, "pipeline_from_folder", no_tokenizer)
    with pytest.raises(ModelLoadFailed):
        pipeline.load_model(settings(), one)
    assert one.nbytes == 0


def test_a_log_says_why_weights_were_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, PLENTY))
    one = reading()
    send_early(one, CPU)
    with structlog.testing.capture_logs() as logs:
        pipeline.load_model(settings(), one)
    assert [line["event"] for line in logs] == ["weights_not_sent_early"]


def _does_not_fit(*_: Any, **__: Any) -> None:
    raise ValueError("the weights of unet do not fit its configuration")


@pytest.mark.parametrize(("device", "sent"), [("cuda:1", ["cuda:1"]), ("cpu", [])])
def test_a_start_sends_them_where_the_model_goes(
    device: str, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(onto_gpu, "send_early", lambda _, there: found.append(str(there)))
    monkeypatch.setattr(cuda_kernels, "compile_early", lambda _: None)
    chosen = settings(device=device)
    serve._begin_gpu(chosen, reading())
    serve._begin_gpu(chosen, Reading(MODEL, half=False, mapped=True))
    serve._begin_gpu(chosen, None)
    assert found == sent
