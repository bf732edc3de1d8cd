"""`make gpu-check` without a GPU: all of it that can run on the small model, and controls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import exactness
from benchmarks.gpu_check.inputs import KINDS, LoraFiles, write_loras
from benchmarks.gpu_check.service import Service, lora_server
from benchmarks.gpu_check.speeds import Ours, Theirs
from testkit.worker import MODEL, running_worker, settings


@pytest.fixture(scope="module")
def worker() -> Iterator[Service]:
    with running_worker(settings(result_keep_seconds=0)) as running:
        health = httpx2.get(f"{running.url}/health?include=modules").json()
        yield Service(running.url, 0.0, health)


@pytest.fixture(scope="module")
def files(worker: Service, tmp_path_factory: pytest.TempPathFactory) -> LoraFiles:
    shapes = {name: tuple(shape) for name, shape in worker.health["signature"]["modules"].items()}
    return write_loras(tmp_path_factory.mktemp("loras"), shapes, 4)


def test_requests_over_http_in_random_order_with_every_kind_of_lora(
    worker: Service, files: LoraFiles
) -> None:
    with lora_server(files) as server:
        loras = [server[name] for name in files.names]
        asked = exactness.cases(loras, (64, 96))
        for body in asked.values():
            body["steps"] = 1
        del asked["two pictures"], asked["heun"], asked["long text"]
        found = exactness.check(worker, asked, len(asked) + 4)

    assert (found.ok, found.requests, found.cases) == (True, len(asked) + 4, len(asked)), found
    assert found.cancelled >= 2
    assert {f"lora {number}" for number in range(len(KINDS))} <= set(asked)


def test_a_cached_lora_is_timed_alone_and_beside_others(worker: Service, files: LoraFiles) -> None:
    with lora_server(files) as server:
        loras: list[Mapping[str, str]] = [server[name] for name in files.names]
        rows = command.over_http(worker, loras, side=64, steps=1, runs=1)

    assert rows["cached_lora_ms"] > 0
    assert rows["drawing"]["eager_because"] == {"no_gpu": 1}


@pytest.mark.slow
@pytest.mark.long
def test_the_parts_and_diffusers_are_timed_and_give_one_picture(files: LoraFiles) -> None:
    paths = [files.folder / name for name in files.names]
    ours = Ours(MODEL, "cpu", side=64, steps=2)
    exact = ours.exact([ours.parse(path) for path in paths[:2]])
    assert exact == dict.fromkeys(exact, True)
    rows = ours.rows(paths, 1)
    assert {row.split(".")[1] for row in command.AIMS if row.startswith("ours.")} <= set(rows)
    assert rows["drawing"]["steps_replayed"] == 2
    peer = Theirs(MODEL, "cpu", side=64, steps=2)
    assert peer.draw() == ours.draw()
    assert peer.rows(files, 1, compiled=False)["hotswap_cycle_ms"] > 0


class Liar(Service):
    """A worker whose third answer to a case is another picture, or not clean, or an error."""

    def __init__(self, lie: dict[str, Any]) -> None:
        super().__init__("", 0.0, {})
        self.lie = lie
        self.asked: dict[str, int] = {}

    def call(self, body: Mapping[str, Any], path: str = "/generate-image") -> dict[str, Any]:
        if path != "/generate-image" or "request_id" in body:
            return {"http": 202}
        name = json.dumps(body, sort_keys=True)
        self.asked[name] = self.asked.get(name, 0) + 1
        good = {"http": 200, "image_sha256": name, "model_clean": True}
        return good | (self.lie if self.asked[name] == 3 else {})


@pytest.mark.parametrize(
    "lie", [{"image_sha256": "other"}, {"model_clean": None}, {"http": 500, "error_code": "X"}]
)
def test_one_wrong_answer_is_found(lie: dict[str, Any]) -> None:
    asked = {"a": {"seed": 1}, "b": {"seed": 2}}

    assert exactness.check(Liar({}), asked, 12).ok
    assert not exactness.check(Liar(lie), asked, 12).ok


def test_cases_that_all_give_one_picture_are_found() -> None:
    same = Liar({})
    same.call = lambda *_: {"http": 200, "image_sha256": "x", "model_clean": True}  # type: ignore[method-assign]

    assert not exactness.check(same, {"a": {"seed": 1}, "b": {"seed": 2}}, 4).ok


def test_a_part_that_fails_is_a_row_and_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    report = command.Report()
    nothing: dict[str, Any] = {}
    report.part("broken", lambda: nothing["x"])
    report.part("ours", lambda: {"switch_ms": 20.0, "text_ms": 10.0})

    assert report.failed == ["broken"]
    assert report.rows["broken"]["error"].startswith("KeyError")
    assert {name: aim["met"] for name, aim in report.aims().items()} == {
        "ours.switch_ms": False,
        "ours.text_ms": True,
    }


def test_without_a_gpu_it_says_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_check", "--json", str(Path("unused.json"))])

    assert command.main() == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
