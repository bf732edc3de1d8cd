"""What is accepted while the worker is away waits for it: with the real worker, as processes.

In seconds as a part of `make test`, in minutes by `make test-long`.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
import pytest

from testkit.processes import REPOSITORY, Process, backend_process, free_port, worker_process

DEMO_MODEL = REPOSITORY / "demo_model" / "sdxl-demo"
LORA = REPOSITORY / "demo_model/loras" / "line-art.safetensors"
NATIVE_SIDE = 128  # px: the small model's own size
STARTED_QUICKLY_S = 60.0  # for a worker to be there and found, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.long]


class Lengths(NamedTuple):
    """How long and how much; see `lengths`."""

    held_back_s: float
    away_s: float
    contents: int


@pytest.fixture
def lengths(request: pytest.FixtureRequest) -> Lengths:
    """Minutes where `--long` asks for them."""
    return Lengths(60, 180, 100) if request.config.getoption("--long") else Lengths(4, 4, 20)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's folder: PostgreSQL runs as another user where tests run as root."""
    with tempfile.TemporaryDirectory(prefix="outage-tests-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def until(is_so: Callable[[], Any], seconds: float) -> Any:
    """What `is_so()` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


def ended(url: str) -> dict[str, Any] | None:
    """The content at `url`, once it has ended."""
    content: dict[str, Any] = httpx2.get(url, timeout=30).json()
    return None if content["status"] in ("queued", "running") else content


def is_up(url: str) -> bool:
    """Whether `url` answers 200."""
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def call_of_the_readme(port: int) -> httpx2.Response:
    """The answer to the first `curl` of README.md, asked of another port."""
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(r"^curl -s (http://127\.0\.0\.1:8000/api/v1/content/generate .*?)^```", text,
                      re.MULTILINE | re.DOTALL)  # fmt: skip
    assert found is not None
    url, *options = shlex.split(found[1].replace("\\\n", " "))
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given.keys() == {"-H", "-d"}, "an option of curl that this test does not know"
    name, _, value = given["-H"].partition(": ")
    place = url.replace(":8000/", f":{port}/")
    return httpx2.post(place, content=given["-d"], headers={name: value}, timeout=300)


def test_the_readme_s_first_picture_comes_though_its_worker_is_late(
    folder: Path, lengths: Lengths
) -> None:
    port, worker_port = free_port(), free_port()
    serve = Process(
        [sys.executable, "-m", "scripts.serve"],
        folder / "serve.log",
        REPOSITORY,
        PORT=str(port),
        WORKER_PORT=str(worker_port),
        DATA_DIR=str(folder / "data"),
        BASE_MODEL="",
    )
    api = f"http://127.0.0.1:{port}"
    try:
        worker = until(lambda: child_that_runs(serve, "sdxl_worker.serve"), 30)
        worker.send_signal(signal.SIGSTOP)
        serve.wait_until(lambda: is_up(f"{api}/health/ready"))
        with ExitStack() as held:
            held.callback(worker.send_signal, signal.SIGCONT)
            accepted = httpx2.post(
                f"{api}/api/v1/content/generate",
                json={"prompt": "the first of all"},
                headers={"Prefer": "wait=1"},
                timeout=60,
            )
            assert accepted.status_code == 202, accepted.text
            first = accepted.json()
            assert (first["status"], first["parameters"]["width"]) == ("queued", None)
            time.sleep(lengths.held_back_s)
        answer = call_of_the_readme(port)
        assert answer.status_code in (200, 202), answer.text  # 202: on a computer that is busy
        for accepted_id in (first["id"], answer.json()["id"]):
            content = until(partial(ended, f"{api}/api/v1/content/{accepted_id}"), 120)
            assert content["status"] == "succeeded", content
            assert sides(content) == (NATIVE_SIDE, NATIVE_SIDE)
        limits = httpx2.get(f"{api}/api/v1/model", timeout=30).json()["limits"]
        for kind in ("controls", "upscalers", "adapters"):
            assert len(limits[kind]) == 1, "make serve brings the small model's own networks"
        assert serve.stop() == 0, serve.output()[-3000:]
    finally:
        serve.stop()


def child_that_runs(process: Process, module: str) -> psutil.Process | None:
    """The process below that runs a Python module, once it does."""
    for child in psutil.Process(process.popen.pid).children(recursive=True):
        try:
            if module in child.cmdline():
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def sides(content: dict[str, Any]) -> tuple[int, int]:
    """Width and height of its one image, px."""
    [image] = content["images"]
    return image["width"], image["height"]


def kinds_of_request(lora_id: str) -> list[dict[str, Any]]:
    """Requests that differ in size, seed, sampler and LoRA; what is not given stays open."""
    lora = {"lora_model_id": lora_id}
    common = {"prompt": "a slice of pizza", "steps": 2}
    return [
        common | different
        for different in (
            {"seed": 1, "width": 64, "height": 64},
            {"seed": 2, "width": 64, "height": 64},
            {"seed": 1, "width": 96, "height": 64},
            {"seed": 1, "width": 64, "height": 64, "loras": [lora | {"scale": 0.8}]},
            {"seed": 1, "width": 64, "height": 64, "loras": [lora | {"scale": -0.5}]},
            {"seed": 1, "width": 64, "height": 64, "scheduler": "euler_a"},
            {"seed": 4294967295, "width": 64, "height": 96, "cfg": 1.0},
            {"seed": 3},
            {"width": 64, "height": 64},
            {"width": 64, "height": 64, "loras": [lora]},
        )
    ]


def test_what_was_accepted_is_drawn_once_after_the_worker_and_the_backend_were_away(
    folder: Path, lengths: Lengths
) -> None:
    data, port, worker_port = folder / "data", free_port(), free_port()
    api = f"http://127.0.0.1:{port}/api/v1"
    settings = {
        "MODAL_ENDPOINT_URL": f"http://127.0.0.1:{worker_port}/generate-image",
        "JOB_HEARTBEAT_SECONDS": "0.5",
        "JOB_STALLED_SECONDS": "3",
    }
    with httpx2.Client(timeout=60) as http:
        with backend_process(data, port, **settings) as backend:
            lora = http.post(
                f"{api}/loras/models/upload",
                files={"file": ("small.safetensors", LORA.read_bytes())},
                data={"name": "small"},
            )
            kinds = kinds_of_request(lora.json()["id"])
            asked = [accept(http, api, kinds[n % len(kinds)]) for n in range(lengths.contents)]
            time.sleep(lengths.away_s)
            for content in asked:
                now = http.get(f"{api}/content/{content['id']}").json()
                assert now["status"] == "queued", now
                assert now["waiting_for"]["reason"] == "worker_unreachable"
            backend.kill()
        with (
            backend_process(data, port, **settings),
            worker_process(folder, DEMO_MODEL, worker_port) as worker,
        ):
            came_back = time.monotonic()
            until(lambda: drawn(worker), STARTED_QUICKLY_S)
            first_after = time.monotonic() - came_back
            done = [end_of(http, api, content["id"]) for content in asked]
            assert drawn(worker) == len(asked)  # none twice
            took = time.monotonic() - came_back
            check_each(http, api, kinds, asked, done)
            listed = http.get(f"{api}/content", params={"limit": 100}).json()["items"]
            assert {one["id"] for one in listed} >= {one["id"] for one in done[-50:]}
    print(
        f"{len(done)} contents waited {lengths.away_s:.0f} s; the first was drawn "
        f"{first_after:.1f} s after the worker was ready, all of them after {took:.1f} s"
    )


def accept(http: httpx2.Client, api: str, body: dict[str, Any]) -> dict[str, Any]:
    """A content that was accepted and waits."""
    answer = http.post(f"{api}/content/generate", json=body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    content: dict[str, Any] = answer.json()
    return content


def end_of(http: httpx2.Client, api: str, content_id: str) -> dict[str, Any]:
    """The content as it is at its end."""

    def ended() -> dict[str, Any] | None:
        content: dict[str, Any] = http.get(f"{api}/content/{content_id}").json()
        return None if content["status"] in ("queued", "running") else content

    found: dict[str, Any] = until(ended, 240)
    return found


def drawn(worker: str) -> int:
    """How many requests the worker has drawn."""
    lines = httpx2.get(f"{worker}/metrics", timeout=30).text.splitlines()
    name = 'sdxl_worker_requests_total{outcome="ok"} '
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


def check_each(
    http: httpx2.Client,
    api: str,
    kinds: list[dict[str, Any]],
    asked: list[dict[str, Any]],
    done: list[dict[str, Any]],
) -> None:
    """Each end is what its request asked for, and the same as one that did not wait."""
    pictures: dict[int, set[str]] = {}
    for number, (before, content) in enumerate(zip(asked, done, strict=True)):
        kind = kinds[number % len(kinds)]
        assert content["status"] == "succeeded", content
        assert content["parameters"]["seed"] == kind.get("seed", before["parameters"]["seed"])
        wanted = kind.get("width", NATIVE_SIDE), kind.get("height", NATIVE_SIDE)
        assert sides(content) == wanted
        used = [(lora["lora_model_id"], lora["scale"]) for lora in content["loras"]]
        asked_for = [(one["lora_model_id"], one.get("scale", 1.0)) for one in kind.get("loras", [])]
        assert used == asked_for
        assert content["model_clean"] is True
        pictures.setdefault(number % len(kinds), set()).add(content["images"][0]["sha256"])
    for number, kind in enumerate(kinds):
        if "seed" in kind:
            fresh = http.post(f"{api}/content/generate", json=kind, timeout=120).json()
            assert pictures[number] == {fresh["images"][0]["sha256"]}, kind
        else:
            assert len(pictures[number]) == len(asked) / len(kinds), "two with one seed"
    of_seed = [next(iter(pictures[number])) for number, kind in enumerate(kinds) if "seed" in kind]
    assert Counter(of_seed).most_common(1)[0][1] == 1, "two requests have one picture"
