"""With a restore that is broken where the engine runs it, the checks over HTTP fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from sdxl_worker.bits import copy_checked
from sdxl_worker.lora import LoraPatcher, RestoreReport
from testkit.worker import (
    SIDE,
    Borrowing,
    FileServer,
    RunningWorker,
    running_worker,
    settings,
    traces_of_a_lora,
)

BODY: dict[str, Any] = {
    "prompt": "a red apple",
    "width": SIDE,
    "height": SIDE,
    "steps": 2,
    "seed": 5,
}


def _put_right(running: RunningWorker) -> None:
    """The model is shared with other tests: put it back without `restore`."""
    assert running.engine._ready is not None
    patcher = running.engine._ready.patcher
    weights = ((name, live, patcher._pristine[name]) for name, live in patcher._live.items())
    assert copy_checked(weights) is None


def _does_nothing(patcher: LoraPatcher) -> RestoreReport:
    return RestoreReport(tensors=0, nbytes=0, seconds=0.0)


def _forgets_what_is_dirty(patcher: LoraPatcher) -> RestoreReport:
    patcher._dirty.clear()
    patcher._wanted = ()
    return RestoreReport(tensors=0, nbytes=0, seconds=0.0)


def _misses_a_tensor(patcher: LoraPatcher) -> RestoreReport:
    missed = next((name for name in patcher._dirty if "unet" in name), None)
    patcher._dirty.pop(missed or "", None)
    return honest_restore(patcher)


def _raises(patcher: LoraPatcher) -> RestoreReport:
    if patcher._dirty:
        raise RuntimeError("planted")
    return honest_restore(patcher)


honest_restore = LoraPatcher.restore
UNNOTICED = {"the next picture differs", "weights differ"}
NOTICED = {
    "nobody states that the model is clean",
    "no longer ready",
} | UNNOTICED


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        pytest.param(honest_restore, set(), id="as-it-is"),
        pytest.param(_does_nothing, NOTICED, id="does-nothing"),
        pytest.param(_raises, NOTICED, id="raises"),
        pytest.param(_forgets_what_is_dirty, UNNOTICED, id="forgets"),
        pytest.param(_misses_a_tensor, UNNOTICED, id="misses-a-tensor"),
    ],
)
def test_a_broken_restore_does_not_pass_unseen(
    worker: RunningWorker,
    files: FileServer,
    lora_data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[LoraPatcher], RestoreReport],
    expected: set[str],
) -> None:
    """The control of all tests over HTTP: their checks fail when the engine's restore does."""
    config = settings()
    with running_worker(config, Borrowing(config, worker)) as running:
        monkeypatch.setattr(LoraPatcher, "restore", broken)
        try:
            found = traces_of_a_lora(running, BODY, files.add(lora_data))
        finally:
            _put_right(running)

    assert found == expected


def test_a_model_that_cannot_be_put_back_ends_the_service(
    worker: RunningWorker, files: FileServer, lora_data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    with running_worker(config, Borrowing(config, worker)) as doomed:
        monkeypatch.setattr(LoraPatcher, "restore", _raises)
        with httpx2.Client(base_url=doomed.url, timeout=60) as http:
            first = http.post("/generate-image", json=BODY | {"lora_url": files.add(lora_data)})
            second = http.post("/generate-image", json=BODY)
            health = http.get("/health")
        _put_right(doomed)

    assert (first.status_code, first.json()["error_code"]) == (503, "MODEL_LOAD_FAILED")
    assert second.status_code == 503
    assert (health.status_code, health.json()["status"]) == (503, "failed")
