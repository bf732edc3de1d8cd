"""Memory that runs out: what is let go of before the restore, and what the caller is told."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import torch
from torch import nn

from sdxl_contract.result import Phase
from sdxl_worker.loading.budgets import DRAWING_BYTES, GIB, plan_memory
from sdxl_worker.loading.gpu_memory import plan_for
from sdxl_worker.lora import LoraPatcher, ParsedLora
from sdxl_worker.out_of_memory import is_out_of_memory, let_go
from sdxl_worker.watching.timings import Stopwatch
from testkit.worker import (
    SIDE,
    FileServer,
    RunningWorker,
    kohya_lora,
    running_worker,
    settings,
)


@pytest.fixture(scope="module")
def worker() -> Iterator[RunningWorker]:
    with running_worker(settings()) as running:
        yield running


def lora_url(worker: RunningWorker, files: FileServer) -> str:
    assert worker.engine._ready is not None
    return files.add(kohya_lora(worker.engine._ready.signature.modules, seed=5))


def ask(worker: RunningWorker, **fields: Any) -> httpx2.Response:
    body = {"prompt": "a red apple", "width": SIDE, "height": SIDE, "steps": 2, "seed": 1} | fields
    return httpx2.post(f"{worker.url}/generate-image", json=body, timeout=60)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_every_name_of_too_little_memory_is_known(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_failed_calls_held_is_let_go_of_while_the_error_lives_on() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def inner() -> None:
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def outer() -> None:
        latents = torch.zeros(8)
        held.append(weakref.ref(latents))
        try:
            inner()
        except RuntimeError as error:
            raise RuntimeError("while drawing") from error

    try:
        outer()
    except RuntimeError as error:
        kept = error
    assert [one() is not None for one in held] == [True, True]

    let_go(kept)

    assert [one() for one in held] == [None, None]
    assert kept.__traceback__ is not None


def test_the_restore_after_running_out_of_memory_finds_the_memory_free(
    worker: RunningWorker, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a garbage collection, on which nobody may count at that moment."""
    held: list[weakref.ref[torch.Tensor]] = []
    at_restore: list[bool] = []
    restore = LoraPatcher.restore

    def too_much(*_: Any, **__: Any) -> Any:
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def restored(self: LoraPatcher) -> Any:
        at_restore.extend(one() is None for one in held)
        return restore(self)

    url = lora_url(worker, files)
    gc.collect()
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("sdxl_worker.drawing.drawer.Drawer._denoise", too_much)
            patch.setattr(LoraPatcher, "restore", restored)
            answer = ask(worker, lora_url=url)
    finally:
        gc.enable()

    assert (answer.status_code, answer.json()["error_code"]) == (507, "CUDA_OOM")
    assert at_restore == [True]
    assert ask(worker).status_code == 200


def test_a_lora_for_which_the_gpu_has_no_room_is_out_of_memory_too(
    worker: RunningWorker, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> ParsedLora:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert worker.engine._ready is not None
    url = lora_url(worker, files)
    with monkeypatch.context() as patch:
        patch.setattr(worker.engine._ready.source, "_prepare", full)
        answer = ask(worker, lora_url=url)

    assert (answer.status_code, answer.json()["error_code"]) == (507, "CUDA_OOM")
    assert ask(worker, lora_url=url).status_code == 200


def test_what_another_request_draws_with_is_let_go_of_on_its_own_thread_alone(
    worker: RunningWorker, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = worker.engine._ready
    assert ready is not None
    freed: list[tuple[str, bool]] = []

    def noted(what: str) -> Any:
        return lambda *_: freed.append((what, threading.current_thread().name.startswith("lane")))

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ready.shelf, "clear", noted("networks"))
    monkeypatch.setattr(ready.drawer, "drop_recordings", noted("recordings"))
    url = lora_url(worker, files)
    with monkeypatch.context() as patch:
        patch.setattr(ready.source, "_prepare", full)
        # Not one that the cache has.
        ready.cache.clear()
        assert ask(worker, lora_url=url).status_code == 507
    assert freed == []
    with monkeypatch.context() as patch:
        patch.setattr("sdxl_worker.drawing.drawer.Drawer._denoise", full)
        assert ask(worker).status_code == 507
    assert freed == [("networks", True), ("recordings", True)]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"width": 128, "height": 64}, "for 128x64: try 96x64"),
        ({"width": 128, "height": 128, "num_images": 2}, "for 128x128: try 96x96 and num_images 1"),
        ({"num_images": 2}, "for 64x64: try num_images 1"),
        ({}, "for 64x64: try again later"),
    ],
)
def test_the_hint_is_something_that_takes_less_memory(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], says: str
) -> None:
    def too_much(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sdxl_worker.drawing.drawer.Drawer._denoise", too_much)
    answer = ask(worker, **asked)

    assert answer.status_code == 507
    assert answer.json()["error"].endswith(says)


def gpu_of(gib: float, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    told = SimpleNamespace(total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: told)
    return torch.device("cuda")


def test_a_gpu_is_large_enough_when_all_of_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: list[nn.Module] = [nn.Linear(1024, 1024, bias=False, dtype=torch.float16)]
    weights = 2 * 1024 * 1024
    needed = (weights + 1_000_000 + 2_000_000 + DRAWING_BYTES) / 2**30

    def fits(gib: float) -> bool:
        device = gpu_of(gib, monkeypatch)
        plan = plan_for(device, modules, copied=1_000_000, loras=2_000_000, graphs=None)
        assert plan is not None
        return plan.pristine > 0

    assert fits(needed + 1e-6)
    assert not fits(needed - 1e-6)
    on_cpu = plan_for(torch.device("cpu"), modules, copied=10**15, loras=0, graphs=None)
    assert on_cpu is None


@pytest.mark.parametrize(("roomy", "expected"), [(True, None), (False, "cpu")])
def test_a_small_gpu_leaves_the_pristine_copy_and_the_loras_on_the_cpu(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch, roomy: bool, expected: str | None
) -> None:
    from sdxl_worker import assembly

    assert worker.engine._ready is not None
    total = 60 * GIB if roomy else GIB
    plan = plan_memory(total, weights=1, copied=1, loras=1)
    model = replace(worker.engine._ready.model, device=torch.device("cuda"))
    placed: list[object] = []
    patcher = LoraPatcher

    def noted(targets: Any, **options: Any) -> LoraPatcher:
        placed.append(options.pop("pristine_device"))
        return patcher(targets, **options)

    monkeypatch.setattr(assembly, "LoraPatcher", noted)
    monkeypatch.setattr(assembly, "plan_for", lambda *_, **__: plan)
    monkeypatch.setattr(assembly, "gpu_name", lambda _: "T4")
    # A stream of its own needs a real device.
    uploads = SimpleNamespace(run=lambda copy, tensors: copy(), staged=None)
    monkeypatch.setattr(assembly, "Uploads", lambda device: uploads)
    ready = assembly.assemble(settings(), model, worker.engine._fetcher)
    moved: list[object] = []
    lora: Any = SimpleNamespace(to=lambda device, _: moved.append(device))
    prepare = ready.source._prepare
    if prepare is not None:
        prepare(bytearray(9), lambda _: lora)

    assert placed == [expected]
    assert moved == ([torch.device("cuda")] if roomy else [])


def test_only_phases_on_the_lane_wait_for_their_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device, expected in (("cuda:1", 1), ("cpu", 0)):
        watch = Stopwatch(torch.device(device))
        for phase in (Phase.QUEUE, Phase.DOWNLOAD, Phase.PARSE, Phase.IMAGE_ENCODE, Phase.UPLOAD):
            with watch.phase(phase):
                pass
        assert waited == [], "the event loop would stand still until the GPU is done"
        for phase in (Phase.APPLY, Phase.TEXT_ENCODE, Phase.DENOISE, Phase.DECODE, Phase.RESTORE):
            with watch.phase(phase):
                pass
        assert waited == [torch.device(device)] * 5 * expected
        waited.clear()
