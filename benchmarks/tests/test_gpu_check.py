"""`make gpu-check` without a GPU: all of it that can run on the small model, and controls."""

from __future__ import annotations

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image

from benchmarks.gpu_check import eight_bits, exactness, features, fetching, inputs
from benchmarks.gpu_check.inputs import (
    KINDS,
    LoraFiles,
    module_shapes,
    write_inputs,
    write_loras,
)
from benchmarks.gpu_check.over_http import Pictures, Size, Worker, begun, timed
from benchmarks.gpu_check.processes import Service, fresh, lora_server
from benchmarks.gpu_check.report import AIMS, Report
from benchmarks.gpu_check.speeds import Ours, Theirs
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.settings import Dtype, Settings
from testkit.worker import MODEL, running_worker, settings

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def worker() -> Iterator[Service]:
    with running_worker(settings(result_keep_seconds=0)) as running:
        health = httpx2.get(f"{running.url}/health?include=modules").json()
        yield Service(running.url, 0.0, health)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LoraFiles:
    return write_loras(tmp_path_factory.mktemp("loras"), module_shapes(MODEL), 4)


def test_the_loras_fit_what_the_worker_says_of_its_model(worker: Service) -> None:
    said = {name: tuple(shape) for name, shape in worker.health["signature"]["modules"].items()}
    assert module_shapes(MODEL) == said


def got(url: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_files_are_served_as_object_stores_do(files: LoraFiles) -> None:
    """Else a LoRA that is in the cache would be sent again whole for every request."""
    data = (files.folder / files.names[0]).read_bytes()
    with lora_server(files) as server:
        lora = server[files.names[0]]
        assert got(lora["url"]) == (200, data)
        assert got(lora["url"], Range="bytes=10-19") == (206, data[10:20])
        etag = f'"{lora["sha256"]}"'
        assert got(lora["url"], **{"If-None-Match": etag}) == (304, b"")
        others = [got(fresh(lora, number)["url"])[1] for number in (1, 2)]
        assert got(f"{lora['url']}x")[0] == 404
    assert len({data, *others}) == 3
    assert all(len(one) == len(data) for one in others)


def test_the_full_size_model_is_written_as_one_that_the_worker_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same code with smaller sides."""

    def stated(part: str) -> dict[str, Any]:
        found = json.loads((MODEL / part / "config.json").read_text())
        return {key: value for key, value in found.items() if not key.startswith("_")}

    for name, part in (("UNET", "unet"), ("VAE", "vae"), ("TEXT_ENCODER", "text_encoder"),
                       ("TEXT_ENCODER_2", "text_encoder_2")):  # fmt: skip
        monkeypatch.setattr(inputs, name, stated(part))
    folder = tmp_path / "model"
    made = write_inputs(tmp_path, folder, "cpu", 4)

    model = load_model(Settings(base_model=str(folder), device="cpu", dtype=Dtype.BFLOAT16))
    assert model.pipe.unet.dtype is torch.bfloat16
    assert all(bool(torch.isfinite(one).all()) for one in model.pipe.unet.parameters())
    assert module_shapes(folder) == module_shapes(None) == module_shapes(MODEL)
    # What is there is not made again; and LoRAs are the same, whatever was made beside them.
    first = {name: (tmp_path / name).read_bytes() for name in made.names}
    monkeypatch.setattr(inputs, "write_model", None)
    assert write_inputs(tmp_path, folder, "cpu", 4).names == made.names
    assert first == {name: (tmp_path / name).read_bytes() for name in made.names}


@pytest.mark.long
def test_requests_over_http_in_random_order_with_every_kind_of_lora(
    worker: Service, files: LoraFiles
) -> None:
    with lora_server(files) as server:
        loras = [server[name] for name in files.names]
        asked = exactness.cases(loras, (64, 96))
        for body in asked.values():
            body["steps"] = 1
        del asked["two pictures"], asked["heun"], asked["long text"]
        found = exactness.Exactness()
        exactness.check(worker, asked, len(asked) + 4, found)

    assert (found.ok, found.requests, found.cases) == (True, len(asked) + 4, len(asked)), found
    assert found.cancelled + found.came_too_late >= 2
    assert set(found.speeds) == {"exact"}
    assert {f"lora {number}" for number in range(len(KINDS))} <= set(asked)


def test_a_cached_lora_is_timed_alone_and_beside_others(worker: Service, files: LoraFiles) -> None:
    rows: dict[str, Any] = {}
    taken: list[bytes] = []
    with lora_server(files) as server:
        loras: list[Mapping[str, str]] = [server[name] for name in files.names]
        timed(worker, loras, Size(MODEL, "cpu", 64, 1, 1), rows, taken.append)

    assert [len(pixels) for pixels in taken] == [3 * 64 * 64]
    assert rows["cached_lora_ms"] > 0
    assert len(rows["fetched_and_parsed_beside_ms"]) == 12
    assert all(one > 0 for one in rows["fetched_and_parsed_beside_ms"])
    assert all(0 < one <= 1 for one in rows["of_the_steps"])
    assert rows["fetched_to_applied_ms"] > 0
    assert rows["drawing"]["eager_because"] == {"no_gpu": 1}


def test_what_was_found_before_something_failed_is_told(worker: Service, files: LoraFiles) -> None:
    report, size, pictures = Report(), Size(MODEL, "cpu", 64, 1, 1), Pictures()
    with lora_server(files) as server:
        # The second is not there.
        known = server[files.names[0]]
        loras: list[Mapping[str, str]] = [known, {"url": f"{known['url']}x"}]
        take = partial(pictures.take, "http")
        report.part("http_start", lambda: begun(worker, size, report.rows["http_start"]))
        report.part("http", lambda: timed(worker, loras, size, report.rows["http"], take))

    assert report.rows["http_start"]["first_picture_s"] > 0
    assert report.rows["http"]["first_lora_ms"] > 0
    assert pictures.http_lora
    assert "LORA" in report.rows["http"]["error"]
    assert report.failed == ["http"]


def test_a_file_is_fetched_beside_another_client_and_is_the_same() -> None:
    rows = fetching.rows(5 << 20, 1)
    assert rows["same_hash"]
    for count in ("alone", "4_at_once"):
        assert rows[f"ours_{count}_loop_ms"] > 0
        assert rows[f"peer_times_ours_{count}"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_the_parts_and_diffusers_are_timed_and_give_one_picture(files: LoraFiles) -> None:
    paths = [files.folder / name for name in files.names]
    ours = Ours(MODEL, "cpu", side=64, steps=2)
    exact: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    ours.exact([ours.parse(path) for path in paths[:2]], exact)
    assert exact == dict.fromkeys(exact, True)
    assert len(exact) == 4
    with_lora = ours.draw_with(paths[0])
    ours.rows(paths, 1, rows)
    assert {row.split(".")[1] for row in AIMS if row.startswith("ours.")} <= set(rows)
    assert rows["drawing"]["steps_replayed"] == 2
    peer = Theirs(MODEL, "cpu", side=64, steps=2)
    assert peer.draw() == ours.draw()
    assert peer.draw_merged(paths[0]) == with_lora
    assert peer.fused(files, 1)["fused_cycle_ms"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_every_way_to_draw_is_timed() -> None:
    ours = Ours(MODEL, "cpu", side=64, steps=2)
    rows = features.rows(ours, small=True)

    assert "failed" not in rows, rows
    assert set(rows) == set(features.cases(64))
    assert all(row["s"] > 0 for row in rows.values())
    for name in ("controlnet", "controlnet_union", "t2i_adapter", "ip_adapter", "hires_esrgan"):
        assert rows[name]["network_bytes"] > 0
    assert rows["words"]["network_bytes"] == 0
    assert rows["upscale_esrgan"]["size"] == [128, 128]
    ours.ready.verify_full()


@pytest.mark.slow
@pytest.mark.long
def test_pictures_in_8_bit_are_near_the_exact_ones_and_not_the_same(files: LoraFiles) -> None:
    found = eight_bits.quality("cpu", 2)
    assert {row.split(".")[1] for row in AIMS if row.startswith("fp8_quality.")} <= set(found)
    for kind in ("base", "lora"):
        assert found[f"top1_{kind}"] == found[f"top1_fp8_{kind}"] == 1.0
        assert 0 < found[f"mean_difference_{kind}"] <= found[f"worst_difference_{kind}"] < 10
    ours = Ours(MODEL, "cpu", side=64, steps=1)
    parts = eight_bits.parts(ours, [files.folder / name for name in files.names[:2]], 1)
    assert parts["clean"]
    assert all(len(pair) == 2 for pair in parts["products_ms"].values())


def picture(words: str) -> str:
    """A picture for each word, as base64."""
    colour = tuple(hash(words) >> shift & 255 for shift in (0, 8, 16))
    file = io.BytesIO()
    Image.new("RGB", (1, 1), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Liar(Service):
    """A worker whose third answer to a case is another picture, or not clean, or an error."""

    def __init__(self, lie: dict[str, Any]) -> None:
        super().__init__("", 0.0, {})
        self.lie = lie
        self.asked: dict[str, int] = {}
        self.counting = threading.Lock()
        self.cancelled: dict[str, Any] = {"http": 499, "error_code": "CANCELLED"}

    def call(self, body: Mapping[str, Any], path: str = "/generate-image") -> dict[str, Any]:
        if path != "/generate-image":
            return {"http": 202}
        if "request_id" in body:
            return self.cancelled
        name = json.dumps(body, sort_keys=True)
        with self.counting:
            self.asked[name] = self.asked.get(name, 0) + 1
            lies = self.asked[name] == 3
        good = {"http": 200, "image_base64": picture(name), "model_clean": True}
        return good | (self.lie if lies else {})


def checked(worker: Service, asked: dict[str, Any], count: int) -> exactness.Exactness:
    found = exactness.Exactness()
    exactness.check(worker, asked, count, found)
    return found


@pytest.mark.parametrize(
    "lie",
    [{"image_base64": picture("x")}, {"model_clean": None}, {"http": 500, "error_code": "X"}],
)
def test_one_wrong_answer_is_found(lie: dict[str, Any]) -> None:
    asked = {"a": {"seed": 1}, "b": {"seed": 2}}

    assert checked(Liar({}), asked, 12).ok
    assert not checked(Liar(lie), asked, 12).ok


def test_cases_that_all_give_one_picture_are_found() -> None:
    same = Liar({})
    same.call = lambda *_: {"http": 200, "image_base64": picture("x"), "model_clean": True}  # type: ignore[method-assign]

    assert not checked(same, {"a": {"seed": 1}, "b": {"seed": 2}}, 4).ok


def test_only_what_said_that_it_was_cancelled_counts_as_such() -> None:
    asked = {"a": {"seed": 1}}
    for answer, counted in (
        ({"http": 499, "error_code": "CANCELLED"}, (1, 0, True)),
        ({"http": 200}, (0, 1, True)),
        ({"http": 500, "error_code": "GENERATION_FAILED"}, (0, 0, False)),
    ):
        worker = Liar({})
        worker.cancelled = answer
        found = checked(worker, asked, 5)
        assert (found.cancelled, found.came_too_late, found.ok) == counted


def test_what_a_worker_drew_before_it_died_is_told() -> None:
    report, worker = Report(), Liar({})
    call = worker.call

    def dies(body: Mapping[str, Any], path: str = "/generate-image") -> dict[str, Any]:
        if sum(worker.asked.values()) == 3:
            raise ConnectionResetError("gone")
        return call(body, path)

    worker.call = dies  # type: ignore[method-assign]
    size = Size(MODEL, "cpu", 64, 1, 1)
    loras: list[Mapping[str, str]] = [
        {"url": f"http://127.0.0.1/{n}", "sha256": ""} for n in range(8)
    ]
    dying = Worker("http", 9, Path("unused"))
    report.part("http_exactness", lambda: dying._exact(report, worker, loras, size))

    row = report.rows["http_exactness"]
    # Two at a time: what came beside the last one may be among them or not.
    assert 1 <= row["requests"] <= 3
    assert (row["ok"], row["differing"]) == (False, [])
    assert "gone" in row["error"]
    assert report.failed == ["http_exactness"]


def test_pictures_are_compared_only_if_8_bits_drew_one() -> None:
    pictures = Pictures()
    pictures.take("http", bytes([0, 0, 0, 0]))
    with pytest.raises(RuntimeError):
        pictures.fp8_apart("fp8")
    pictures.take("fp8", bytes([0, 2, 0, 2]))
    assert pictures.fp8_apart("fp8") == {"mean_difference": 1.0}
    assert pictures.fp8_apart("exact")["no_difference_because"] == "drawn exact"
