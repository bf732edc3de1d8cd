"""Requests in line, over real HTTP: read-ahead, shared LoRA sets, leaving, and what is counted."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sdxl_contract.result import ProgressEvent
from sdxl_worker.assembly import assemble
from sdxl_worker.drawing import drawer as drawing
from sdxl_worker.drawing.prompts import encode_words
from sdxl_worker.run import Run
from testkit.worker import (
    SIDE,
    Borrowing,
    FileServer,
    RunningWorker,
    hashes,
    kohya_lora,
    running_worker,
    settings,
)

BODY: dict[str, Any] = {"prompt": "a tree", "width": SIDE, "height": SIDE, "steps": 2, "seed": 1}


@pytest.fixture
def busy(worker: RunningWorker, tmp_path: Path) -> Iterator[RunningWorker]:
    """A worker that shares a LoRA set among up to three requests, with a disk tier."""
    before = hashes(worker.engine)
    config = settings(same_lora_run_max=3, lora_cache_dir=str(tmp_path))
    with running_worker(config, Borrowing(config, worker)) as running:
        yield running
        assert running.engine.runs.running == 0
    assert hashes(worker.engine) == before


class Gate:
    """Holds the lane inside a request until it is opened; says when one has come."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    held = Gate()
    encode = encode_words

    def gated(pipe: Any, sides: Any, *rest: Any) -> Any:
        if "hold the lane" in repr(sides):
            held.reached.set()
            assert held.opened.wait(120)
        return encode(pipe, sides, *rest)

    monkeypatch.setattr(drawing, "encode_words", gated)
    yield held
    held.opened.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


class Callers:
    """Requests sent at the same time, each by a thread."""

    def __init__(self, running: RunningWorker) -> None:
        self._running = running
        self._pool = ThreadPoolExecutor(8)

    def send(self, **fields: Any) -> Future[dict[str, Any]]:
        def call() -> dict[str, Any]:
            with httpx2.Client(base_url=self._running.url, timeout=120) as http:
                answer: dict[str, Any] = http.post("/generate-image", json=BODY | fields).json()
                return answer

        return self._pool.submit(call)


def two_loras(files: FileServer, running: RunningWorker) -> list[dict[str, Any]]:
    assert running.engine._ready is not None
    shapes = dict(list(running.engine._ready.signature.modules.items())[:80])
    made = []
    for number in (1, 2):
        data = kohya_lora(shapes, seed=number)
        url = files.add(data, f"/{number}.safetensors")
        made.append({"url": url, "sha256": hashlib.sha256(data).hexdigest()})
    return made


def metric(running: RunningWorker, line: str) -> float:
    with httpx2.Client(base_url=running.url, timeout=120) as http:
        text = http.get("/metrics").text
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_next_lora_is_ready_while_the_lane_is_busy_and_equal_sets_go_together(
    busy: RunningWorker, files: FileServer, gate: Gate
) -> None:
    a, b = two_loras(files, busy)
    callers = Callers(busy)
    lane = busy.engine._lane
    first = callers.send(prompt="hold the lane", loras=[a])
    assert gate.reached.wait(120)
    others = []
    for lora in (b, a, a, a):
        others.append(callers.send(loras=[lora]))
        wait_for(lambda: len(lane._line) == len(others))

    # All is fetched and parsed, and the first request has not made one step.
    assert busy.engine._ready is not None
    held = {sha256 for sha256, _ in busy.engine._ready.cache.contents()}
    assert held == {a["sha256"], b["sha256"]}
    assert not first.done()
    gate.opened.set()
    answers = [future.result(120) for future in (first, *others)]

    # Three in a row share the set; then b, overtaken twice, comes before the last one.
    kinds = {kind: metric(busy, f'sdxl_worker_lora_swaps_total{{kind="{kind}"}}')
             for kind in ("fresh", "same", "switch")}  # fmt: skip
    assert kinds == {"fresh": 3, "same": 2, "switch": 0}
    assert [answer.get("model_clean") for answer in answers] == [None, True, None, True, True]
    assert metric(busy, "sdxl_worker_restores_verified_total") == 3
    same = [answers[i]["image_base64"] for i in (2, 3, 4)]
    assert len(set(same)) == 1, "shared or fresh, the set draws the same"
    assert answers[1]["image_base64"] != same[0]
    assert all(answer["timings"]["queue"] > 0 for answer in answers[1:])


def test_a_client_that_leaves_a_stream_stops_the_work_within_one_step(
    busy: RunningWorker, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = two_loras(files, busy)
    steps: list[int] = []
    at_cancel: list[int] = []
    emit, cancel = Run.emit, Run.cancel
    left = threading.Event()

    def emitting(self: Run, event: Any) -> None:
        if isinstance(event, ProgressEvent) and event.step:
            steps.append(event.step)
            # The model's steps take milliseconds here, far less than noticing takes: once the
            # client has left, the next step waits until that has been noticed.
            if event.step == 5:
                assert left.wait(120)
                wait_for(lambda: bool(at_cancel))
        emit(self, event)

    def cancelling(self: Run) -> None:
        at_cancel.append(len(steps))
        cancel(self)

    monkeypatch.setattr(Run, "emit", emitting)
    monkeypatch.setattr(Run, "cancel", cancelling)
    headers = {"Accept": "text/event-stream"}
    with (
        httpx2.Client(base_url=busy.url, timeout=120) as http,
        http.stream(
            "POST", "/generate-image", json=BODY | {"steps": 60, "loras": [a]}, headers=headers
        ) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:]).get("step") == 4:
                break
    left.set()
    wait_for(lambda: busy.engine.runs.running == 0)

    assert len(steps) - at_cancel[0] <= 1
    assert len(steps) < 60
    assert metric(busy, 'sdxl_worker_requests_total{outcome="CANCELLED"}') == 1
    # What it left behind draws the base, as the fixture's hashes say, too.
    assert busy.engine._ready is not None
    assert busy.engine._ready.patcher.dirty_tensors == 0


def test_whoever_waits_in_line_leaves_it_at_the_end_of_his_time(
    busy: RunningWorker, gate: Gate
) -> None:
    callers = Callers(busy)
    first = callers.send(prompt="hold the lane")
    assert gate.reached.wait(120)
    late = callers.send(timeout=1).result(60)

    assert late["error_code"] == "TIMEOUT"
    assert not first.done(), "the answer came while the lane was still held"
    gate.opened.set()
    assert first.result(120)["model_clean"] is True


def test_metrics_count_outcomes_phases_caches_swaps_and_restores(
    busy: RunningWorker, files: FileServer
) -> None:
    a, _ = two_loras(files, busy)
    callers = Callers(busy)
    for fields in (
        {"loras": [a]},
        {"loras": [a]},
        {},
        {"steps": 0},
        {"lora_url": files.url("/no")},
    ):
        callers.send(**fields).result(120)
    size = len(files.files["/1.safetensors"])

    assert metric(busy, 'sdxl_worker_requests_total{outcome="ok"}') == 3
    assert metric(busy, 'sdxl_worker_requests_total{outcome="LORA_DOWNLOAD_FAILED"}') == 1
    for phase in ("queue", "download", "parse", "apply", "text_encode", "denoise", "decode",
                  "restore", "image_encode"):  # fmt: skip
        assert metric(busy, f'sdxl_worker_phase_seconds_count{{phase="{phase}"}}') == 3
    assert metric(busy, 'sdxl_worker_phase_seconds_sum{phase="denoise"}') > 0
    assert metric(busy, 'sdxl_worker_lora_lookups_total{found="miss"}') == 1
    assert metric(busy, 'sdxl_worker_lora_lookups_total{found="memory"}') == 1
    assert 0 < metric(busy, "sdxl_worker_lora_cache_bytes") <= size
    assert metric(busy, "sdxl_worker_lora_disk_bytes") == size
    assert metric(busy, "sdxl_worker_queue_length") == 0
    assert metric(busy, 'sdxl_worker_lora_swaps_total{kind="fresh"}') == 2
    assert metric(busy, 'sdxl_worker_lora_swaps_total{kind="none"}') == 1
    assert metric(busy, "sdxl_worker_restores_verified_total") == 3
    assert metric(busy, "sdxl_worker_restored_bytes_total") > 0


def test_pictures_of_a_batch_equal_those_drawn_one_by_one_up_to_rounding(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from sdxl_contract.request import GenerateRequest

    assert worker.engine._ready is not None
    model = worker.engine._ready.model
    request = GenerateRequest(
        prompt="a tree", steps=3, num_images=3, seed=7, width=SIDE, height=SIDE
    )
    drawn, steps = {}, {}
    for batch in (1, 2):
        seen: list[int] = []
        parts = assemble(settings(images_per_batch=batch), model, worker.engine._fetcher)
        run = Run(request)
        monkeypatch.setattr(run, "step", lambda done, *_, seen=seen, **__: seen.append(done))
        drawn[batch] = parts.drawer.draw(run)
        steps[batch] = seen

    assert steps == {1: [1, 2, 3, 4, 5, 6, 7, 8, 9], 2: [2, 4, 6, 7, 8, 9]}
    assert [one.seed for one in drawn[2]] == [7, 8, 9]
    for alone, together in zip(drawn[1], drawn[2], strict=True):
        difference = np.asarray(alone.image, int) - np.asarray(together.image, int)
        assert np.abs(difference).max() <= 2
