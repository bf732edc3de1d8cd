"""The worker under Ray Serve, really run: two replicas on the CPU, the small model, real HTTP."""

from __future__ import annotations

import hashlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
import psutil
import pytest
import torch

from scripts.stack import free_port
from sdxl_contract.routing.affinity import preference
from testkit.worker import SIDE, FileServer, file_server, kohya_lora, running_worker, settings

pytest.importorskip("ray", reason="ray cannot be imported: pip install 'ray[serve]'")

with warnings.catch_warnings():
    # Serve declares its own settings in pydantic's old way.
    warnings.simplefilter("ignore")
    from ray import serve

    import ray_app
    from ray_ingress import REPLICA_HEADER
    from ray_routing import Route

LORAS = 8
REQUESTS = 40
REPLICAS = 2
# Two processes import torch beside this one: minutes where the machine is busy with other work.
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Fleet:
    """Two replicas behind one URL."""

    url: str
    replicas: tuple[str, ...]
    files: FileServer

    def call(self, method: str, route: Route) -> Any:
        handle = serve.get_deployment_handle(ray_app.WORKER, ray_app.APP)
        return getattr(handle, method).remote(route).result(timeout_s=300)

    def weights(self) -> dict[str, str]:
        """Hash of all weights, by replica."""
        return {name: self.call("weights_sha256", Route(replica=name)) for name in self.replicas}


@pytest.fixture(scope="module")
def files() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(scope="module")
def fleet(files: FileServer) -> Iterator[Fleet]:
    sizes = ray_app.FleetSettings(
        min_replicas=REPLICAS, max_replicas=REPLICAS, gpus_per_replica=0, cpus_per_replica=1
    )
    with ray_app.running(settings(worker_port=free_port()), sizes, cpus=REPLICAS) as url:
        found: set[str] = set()
        handle = serve.get_deployment_handle(ray_app.WORKER, ray_app.APP)
        deadline = time.monotonic() + 300
        while len(found) < REPLICAS and time.monotonic() < deadline:
            found.add(handle.replica_id.remote(Route()).result(timeout_s=300))
        yield Fleet(url, tuple(sorted(found)), files)


@pytest.fixture(scope="module")
def single() -> Iterator[tuple[httpx2.Client, dict[str, tuple[int, ...]]]]:
    """One worker without Ray, with one thread as the replicas have: what pictures must be."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            running_worker(settings()) as alone,
            httpx2.Client(base_url=alone.url, timeout=300) as http,
        ):
            assert alone.engine._ready is not None
            yield http, alone.engine._ready.signature.modules
    finally:
        torch.set_num_threads(threads)


def lora_files(shapes: dict[str, tuple[int, ...]], fleet: Fleet, *, start: int) -> list[bytes]:
    """LoRAs of which every replica is preferred by as many, so that chance decides nothing."""
    kept: dict[str, list[bytes]] = {name: [] for name in fleet.replicas}
    for seed in itertools.count(start):
        data = kohya_lora(shapes, seed=seed)
        first = preference(hashlib.sha256(data).hexdigest(), fleet.replicas)[0]
        if len(kept[first]) < LORAS // REPLICAS:
            kept[first].append(data)
        if all(len(some) == LORAS // REPLICAS for some in kept.values()):
            break
    return [data for group in zip(*kept.values(), strict=True) for data in group]


def requests_for(loras: list[bytes], files: FileServer, folder: str) -> list[dict[str, Any]]:
    """40 requests, each LoRA five times, all different."""
    bodies = []
    for number in range(REQUESTS):
        data = loras[number % LORAS]
        digest = hashlib.sha256(data).hexdigest()
        url = files.add(data, f"/{folder}/{digest[:8]}.safetensors")
        reference = {"url": f"{url}&n={number}", "sha256": digest, "scale": 0.8}
        size = {"width": SIDE, "height": SIDE, "steps": 1}
        bodies.append({"prompt": "a red apple", "seed": number, "loras": [reference], **size})
    return bodies


def post(client: httpx2.Client, body: dict[str, Any]) -> httpx2.Response:
    answer = client.post("/generate-image", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def test_forty_requests_over_eight_loras_on_two_replicas(
    fleet: Fleet, single: tuple[httpx2.Client, dict[str, tuple[int, ...]]]
) -> None:
    alone, shapes = single
    pristine = fleet.weights()
    assert len(pristine) == REPLICAS
    loras = lora_files(shapes, fleet, start=0)
    bodies = requests_for(loras, fleet.files, "affinity")

    with (
        httpx2.Client(base_url=fleet.url, timeout=300) as http,
        # Two at a time: no more than one replica takes, so that none has to pass one on.
        ThreadPoolExecutor(2) as pool,
    ):
        answers = list(pool.map(lambda body: post(http, body), bodies))

    expected = [post(alone, body).json()["image_base64"] for body in bodies]
    results = [answer.json() for answer in answers]
    assert [result["image_base64"] for result in results] == expected
    assert len(set(expected)) == REQUESTS
    assert all(result["model_clean"] for result in results)
    assert fleet.weights() == pristine
    assert len(set(pristine.values())) == 1
    for body, answer in zip(bodies, answers, strict=True):
        preferred = preference(body["loras"][0]["sha256"], fleet.replicas)[0]
        assert answer.headers[REPLICA_HEADER] == preferred
    hits = sum(result["timings"]["parse"] == 0 for result in results)
    assert hits == REQUESTS - LORAS

    # The control: as many requests over as many new LoRAs, sent to the less loaded of two.
    control = requests_for(lora_files(shapes, fleet, start=10_000), fleet.files, "random")
    random_hits = sum(result["timings"]["parse"] == 0 for result in anywhere(fleet, control))
    print(
        f"\ncache hits of {REQUESTS} requests over {LORAS} LoRAs on {REPLICAS} replicas: "
        f"{hits} by affinity, {random_hits} by random routing"
    )
    assert hits > random_hits
    assert fleet.weights() == pristine


def anywhere(fleet: Fleet, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of `bodies` when no replica is preferred."""
    handle = serve.get_deployment_handle(ray_app.WORKER, ray_app.APP)
    results = []
    for body in bodies:
        content = httpx2.Request("POST", "http://x/", json=body).content
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/generate-image",
            "raw_path": b"/generate-image",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        }
        stream: Any = handle.options(stream=True).http.remote(Route(), scope, content)
        text = b"".join(message.get("body", b"") for message in stream)
        results.append(httpx2.Response(200, content=text).json())
    return results


def test_a_repeated_request_id_gets_the_kept_result_from_the_replica_that_has_it(
    fleet: Fleet,
) -> None:
    body = {"prompt": "x", "width": SIDE, "height": SIDE, "steps": 1, "request_id": "twice"}

    with httpx2.Client(base_url=fleet.url, timeout=300) as http:
        # Without a LoRA nothing but the id brings them together; without a seed, a second
        # generation would be another picture.
        answers = [post(http, body) for _ in range(6)]
        state = http.get("/requests/twice").json()["state"]

    assert len({answer.headers[REPLICA_HEADER] for answer in answers}) == 1
    assert len({answer.json()["image_base64"] for answer in answers}) == 1
    assert state == "succeeded"


def test_a_client_that_goes_away_ends_its_request(fleet: Fleet) -> None:
    pristine = fleet.weights()
    body = {"prompt": "x", "width": 128, "height": 128, "steps": 100, "request_id": "left"}
    with httpx2.Client(base_url=fleet.url, timeout=300) as http:
        with http.stream(
            "POST", "/generate-image", json=body, headers={"accept": "text/event-stream"}
        ) as answer:
            next(answer.iter_lines())
        deadline = time.monotonic() + 300
        while http.get("/requests/left").json()["state"] == "running":
            assert time.monotonic() < deadline, "the request still runs"
            time.sleep(0.05)

        assert http.get("/requests/left").json()["state"] == "unknown"
    assert fleet.weights() == pristine


def test_errors_and_progress_pass_as_the_worker_sends_them(fleet: Fleet) -> None:
    with httpx2.Client(base_url=fleet.url, timeout=300) as http:
        blank = http.post("/generate-image", json={"prompt": " "})
        large = http.post("/generate-image", content=b"x" * (1 << 21))
        missing = http.get("/nothing")
        events = http.post(
            "/generate-image",
            json={"prompt": "x", "width": SIDE, "height": SIDE, "steps": 1},
            headers={"accept": "text/event-stream"},
        )
        health = http.get("/health")

    assert (blank.status_code, blank.json()["error_code"]) == (400, "INVALID_PROMPT")
    assert (large.status_code, large.json()["error_code"]) == (413, "INVALID_REQUEST")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "INVALID_REQUEST")
    assert health.json()["status"] == "ready"
    assert events.headers["content-type"].startswith("text/event-stream")
    names = [line for line in events.text.splitlines() if line.startswith("event: ")]
    assert names[0] == "event: queued"
    assert names[-1] == "event: result"


def test_ray_listens_on_loopback_alone_and_runs_no_dashboard(fleet: Fleet) -> None:
    me = psutil.Process()
    listening = {
        (process.name(), socket_.laddr.ip)
        for process in me.children(recursive=True)
        for socket_ in process.net_connections("inet")
        if socket_.status == psutil.CONN_LISTEN
    }
    replicas = {name for name, _ in listening if name.startswith("ray::ServeReplica")}

    assert len(replicas) == 2  # the worker's and the ingress's
    assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}
    with pytest.raises(httpx2.ConnectError):
        httpx2.get("http://127.0.0.1:8265", timeout=5)


def test_a_replica_killed_while_it_draws_costs_one_request_and_is_replaced(
    fleet: Fleet, single: tuple[httpx2.Client, dict[str, tuple[int, ...]]]
) -> None:
    """Last of the tests with this fleet: afterwards it has another replica."""
    pristine = set(fleet.weights().values())
    # Each of the two LoRAs is preferred by another replica.
    loras = lora_files(single[1], fleet, start=20_000)[:REPLICAS]
    urls = [fleet.files.add(data, f"/kill/{n}.safetensors") for n, data in enumerate(loras)]
    body = {"prompt": "x", "width": 128, "height": 128, "steps": 100}

    def draw(number: int) -> httpx2.Response:
        digest = hashlib.sha256(loras[number]).hexdigest()
        own = {"request_id": f"doomed-{number}", "loras": [{"url": urls[number], "sha256": digest}]}
        with httpx2.Client(base_url=fleet.url, timeout=300) as http:
            return http.post("/generate-image", json=body | own)

    def worker_processes() -> list[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        return [one for one in found if "ServeReplica:sdxl-lora:Worker" in " ".join(one.cmdline())]

    before = worker_processes()
    assert len(before) == REPLICAS
    with ThreadPoolExecutor(REPLICAS) as pool:
        answers = [pool.submit(draw, number) for number in range(REPLICAS)]
        with httpx2.Client(base_url=fleet.url, timeout=300) as http:
            for number in range(REPLICAS):
                wait_until(partial(is_running, http, f"doomed-{number}"))
        before[0].kill()
        ends = sorted(answers, key=lambda answer: answer.result().status_code)
    told = [answer.result().text for answer in ends]
    assert [answer.result().status_code for answer in ends] == [200, 500], told
    failed = ends[1].result()
    assert failed.json()["error_code"] == "GENERATION_FAILED"
    assert failed.headers["retry-after"] == "1"
    # The same id again: it is drawn where there is somebody, and nobody waits for the dead one.
    again = draw(0 if failed is answers[0].result() else 1)
    assert again.status_code == 200

    found: dict[str, str] = {}
    handle = serve.get_deployment_handle(ray_app.WORKER, ray_app.APP)

    def both_are_there() -> bool:
        name = handle.replica_id.remote(Route()).result(timeout_s=300)
        found.setdefault(name, fleet.call("weights_sha256", Route(replica=name)))
        return len(found) == REPLICAS

    wait_until(both_are_there)
    assert set(found.values()) == pristine


def is_running(http: httpx2.Client, request_id: str) -> bool:
    """Whether the fleet says that this request is being worked on."""
    return bool(http.get(f"/requests/{request_id}").json()["state"] == "running")


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def test_settings_that_cannot_work_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_MIN_REPLICAS", "3")
    monkeypatch.setenv("FLEET_MAX_REPLICAS", "2")

    with pytest.raises(ValueError, match="FLEET_MIN_REPLICAS is 3: at most FLEET_MAX_REPLICAS"):
        ray_app.FleetSettings()
