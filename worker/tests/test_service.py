"""The worker over real HTTP with a real SDXL pipeline: pictures, errors, and the model after."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import torch

from sdxl_contract.result import GenerateResult, Health
from sdxl_worker.engine import Engine
from testkit.loras.plain_bytes import sd15_lora
from testkit.worker import (
    SIDE,
    FileServer,
    RunningWorker,
    hashes,
    png_of,
    running_worker,
    settings,
)

BASE: dict[str, Any] = {
    "prompt": "a red apple",
    "width": SIDE,
    "height": SIDE,
    "steps": 2,
    "seed": 5,
}


def draw(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/generate-image", json=BASE | fields)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def refused(client: httpx2.Client, **fields: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post("/generate-image", json=BASE | fields)
    return answer.status_code, answer.json()


@pytest.fixture(autouse=True)
def _model_stays_pristine(worker: RunningWorker) -> Any:
    """Around every test of this file: all parameters and buffers, byte for byte."""
    before = hashes(worker.engine)
    yield
    deadline = time.monotonic() + 20
    while worker.engine.runs.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hashes(worker.engine) == before


def test_a_picture_with_a_lora_leaves_the_base_as_it_was(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    before = draw(client)
    styled = draw(client, lora_url=files.add(lora_data), lora_scale=0.9)
    after = draw(client)

    assert before["image_base64"] == after["image_base64"]
    assert styled["image_base64"] != before["image_base64"]
    assert styled["model_clean"] is True
    result = GenerateResult.model_validate(styled)
    (report,) = result.loras
    assert report.sha256 == hashlib.sha256(lora_data).hexdigest()
    assert (report.scale, report.rank, report.modules_unmatched) == (0.9, 4, [])
    assert report.modules_matched > 100
    assert result.model_info.lora_applied
    assert result.model_info.weights == client.get("/health").json()["weights"]
    assert result.timings.denoise > 0
    assert result.timings.restore > 0


def test_scale_zero_is_the_base_bit_for_bit(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    base = draw(client)
    zero = draw(client, lora_url=files.add(lora_data), lora_scale=0)

    assert png_of(zero).tobytes() == png_of(base).tobytes()


def test_the_order_of_loras_does_not_matter(
    client: httpx2.Client, files: FileServer, worker: RunningWorker
) -> None:
    from testkit.worker import kohya_lora

    assert worker.engine._ready is not None
    shapes = worker.engine._ready.signature.modules
    refs = [
        {"url": files.add(kohya_lora(shapes, seed=n), f"/{n}.safetensors"), "scale": scale}
        for n, scale in ((1, 0.7), (2, -0.4))
    ]

    one = draw(client, loras=refs)
    other = draw(client, loras=refs[::-1])

    assert png_of(one).tobytes() == png_of(other).tobytes()
    assert png_of(one).tobytes() != png_of(draw(client)).tobytes()


def test_a_new_signature_of_the_same_file_is_not_downloaded_again(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    digest = hashlib.sha256(lora_data).hexdigest()
    files.add(lora_data, "/unique.safetensors")
    for number in (1, 2):
        url = files.url("/unique.safetensors", f"X-Amz-Signature={number}")
        found = draw(client, loras=[{"url": url, "sha256": digest}])["loras"][0]
        # Whether somebody else had the same file before is nobody's business.
        assert "cache" not in found

    # The second time one piece of it shows the caller's right.
    assert files.statuses[-1] == 206
    assert files.statuses.count(200) <= 1


def test_without_a_hash_the_server_is_asked_whether_it_changed(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    path = "/by-etag.safetensors"
    files.add(lora_data, path)
    draw(client, lora_url=files.url(path, "X-Amz-Signature=1"))
    draw(client, lora_url=files.url(path, "X-Amz-Signature=2"))

    assert files.statuses == [200, 304]


def test_the_same_request_gives_the_same_bytes(client: httpx2.Client) -> None:
    assert draw(client)["image_base64"] == draw(client)["image_base64"]


def test_a_seed_is_chosen_and_reported(client: httpx2.Client) -> None:
    first = draw(client, seed=None)
    again = draw(client, seed=first["metadata"]["seed_used"])

    assert first["image_base64"] == again["image_base64"]


def test_each_of_several_images_equals_the_one_drawn_alone(client: httpx2.Client) -> None:
    both = draw(client, num_images=2)
    second = draw(client, seed=BASE["seed"] + 1)

    assert both["metadata"]["seeds"] == [5, 6]
    assert both["images"][1]["image_base64"] == second["image_base64"]


def test_the_png_names_its_settings(client: httpx2.Client) -> None:
    image = png_of(draw(client, negative_prompt="blurry"))

    assert image.size == (SIDE, SIDE)
    text = image.info["parameters"]
    assert "Negative prompt: blurry" in text
    assert "Steps: 2" in text
    assert "Seed: 5" in text


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_come_as_asked(client: httpx2.Client, kind: str) -> None:
    image = png_of(draw(client, output_format=kind))

    assert image.format == kind.upper()


@pytest.mark.parametrize(
    "name", ["euler_a", "dpmpp_2m_karras", "ddim", "unipc", "lcm", "euler_trailing", "heun"]
)
def test_schedulers_go_by_their_usual_names(client: httpx2.Client, name: str) -> None:
    assert draw(client, scheduler=name, steps=4)["metadata"]["scheduler"] == name


def test_a_prompt_beyond_77_tokens_counts_to_its_end(client: httpx2.Client) -> None:
    long = "a red apple, " * 60
    one = draw(client, prompt=long + "white background")
    other = draw(client, prompt=long + "yellow background")

    assert one["image_base64"] != other["image_base64"]


def test_an_image_is_uploaded_where_the_request_says(
    client: httpx2.Client, files: FileServer
) -> None:
    result = draw(client, output_url=files.url("/out.png"))

    assert "image_base64" not in result
    assert hashlib.sha256(files.puts["/out.png"]).hexdigest() == result["image_sha256"]


# --- refusals: the code, the field, and no URL in the message ------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "code", "says"),
    [
        ({"prompt": " "}, 400, "INVALID_PROMPT", "prompt is blank"),
        ({"width": 63}, 422, "INVALID_REQUEST", "the nearest allowed is 64"),
        ({"height": 257}, 422, "INVALID_REQUEST", "the nearest allowed is 256"),
        ({"width": 100}, 422, "INVALID_REQUEST", "the nearest allowed is 104"),
        ({"steps": 0}, 422, "INVALID_REQUEST", "steps: must be at least 1"),
        ({"cfg": 0.5}, 422, "INVALID_REQUEST", "cfg: must be at least 1.0"),
        ({"lora_scale": 1.5}, 422, "INVALID_REQUEST", "lora_scale: must be at most 1.0"),
        ({"lora_url": "http://169.254.169.254/x"}, 400, "LORA_DOWNLOAD_FAILED", "not public"),
        ({"lora_url": "https://10.0.0.1/x"}, 400, "LORA_DOWNLOAD_FAILED", "not public"),
        ({"lora_url": "ftp://example.com/x"}, 400, "LORA_DOWNLOAD_FAILED", "https://"),
        ({"lora_url": "file:///etc/passwd"}, 400, "LORA_DOWNLOAD_FAILED", "URL"),
    ],
)
def test_bad_input_is_refused_by_name(
    client: httpx2.Client, fields: dict[str, Any], status: int, code: str, says: str
) -> None:
    got, body = refused(client, **fields)

    assert (got, body["error_code"]) == (status, code)
    assert says in body["error"]
    assert draw(client)["model_clean"] is True


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(sd15_lora(), "SD 1", id="a LoRA for SD 1.5"),
        pytest.param(b"\x80\x04\x95pickle" + b"x" * 64, "pickle", id="a pickle"),
        pytest.param(b"PK\x03\x04" + b"x" * 64, "", id="a zip"),
        pytest.param(b"<html>no</html>" * 9, "", id="a web page"),
        pytest.param(b"", "", id="nothing"),
    ],
)
def test_a_file_that_is_no_lora_for_this_model_is_refused(
    client: httpx2.Client, files: FileServer, data: bytes, says: str
) -> None:
    status, body = refused(client, lora_url=files.add(data))

    assert (status, body["error_code"]) == (422, "LORA_LOAD_FAILED")
    assert says.lower() in body["error"].lower()


def test_a_truncated_file_is_refused(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    status, body = refused(client, lora_url=files.add(lora_data[: len(lora_data) // 2]))

    assert (status, body["error_code"]) == (422, "LORA_LOAD_FAILED")


def test_an_expired_url_is_told_from_a_wrong_one(client: httpx2.Client, files: FileServer) -> None:
    def expired(handler: Any) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
        handler.send_response(403)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    files.scripts["/old"] = expired
    status, body = refused(client, lora_url=files.url("/old"))
    assert (status, body["error_code"], body["details"]["reason"]) == (
        400,
        "LORA_DOWNLOAD_FAILED",
        "expired",
    )
    status, body = refused(client, lora_url=files.url("/missing"))
    assert (status, body["details"]["reason"]) == (400, "http_status")
    assert "secret" not in json.dumps(body)


def test_a_wrong_hash_is_refused(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    ref = {"url": files.add(lora_data), "sha256": "0" * 64}
    status, body = refused(client, loras=[ref])

    assert (status, body["details"]["reason"]) == (400, "hash_mismatch")


# --- faults at each phase; the autouse fixture holds the model --------------------------------


def _boom(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("planted at /server/path with X-Amz-Signature=hunter2")


@pytest.mark.parametrize(
    "where",
    [
        "sdxl_worker.drawing.drawer.encode_words",
        "sdxl_worker.drawing.drawer.build_scheduler",
        "sdxl_worker.drawing.drawer.to_image",
        "sdxl_worker.answering.result.encode_image",
        "sdxl_worker.lora.patcher.merge_weight",
    ],
)
def test_an_exception_in_a_phase_leaves_the_model_pristine(
    client: httpx2.Client,
    files: FileServer,
    lora_data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    base = draw(client)
    with monkeypatch.context() as patch:
        patch.setattr(where, _boom)
        status, body = refused(client, lora_url=files.add(lora_data))

    assert (status, body["error_code"]) == (500, "GENERATION_FAILED")
    assert "hunter2" not in json.dumps(body)
    assert "/server" not in json.dumps(body)
    assert draw(client)["image_base64"] == base["image_base64"]


def test_running_out_of_memory_names_a_smaller_size(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("sdxl_worker.drawing.drawer.encode_words", out_of_memory)
        status, body = refused(client, width=128, height=128)

    assert (status, body["error_code"]) == (507, "CUDA_OOM")
    assert "try 96x96" in body["error"]


def test_latents_that_are_not_finite_are_an_error(
    client: httpx2.Client, worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any, sample: torch.Tensor, *__: Any, **___: Any) -> Any:
        return (torch.full_like(sample, float("nan")),)

    assert worker.engine._ready is not None
    unet_class = type(worker.engine._ready.model.pipe.unet)
    with monkeypatch.context() as patch:
        patch.setattr(unet_class, "forward", broken)
        status, body = refused(client)

    assert (status, body["error_code"]) == (500, "GENERATION_FAILED")
    assert "not finite" in body["error"]


def test_a_request_over_its_own_timeout_is_stopped(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    status, body = refused(
        client,
        steps=100,
        num_images=4,  # longer than that even on a quick machine
        timeout=1,
        width=256,
        height=256,
        lora_url=files.add(lora_data),
    )

    assert (status, body["error_code"]) == (504, "TIMEOUT")
    assert draw(client)["model_clean"] is True


def _wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def test_a_cancelled_request_stops_and_says_so(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    answers: list[httpx2.Response] = []
    body = BASE | {"steps": 100, "request_id": "stop-me", "lora_url": files.add(lora_data)}
    caller = threading.Thread(
        target=lambda: answers.append(client.post("/generate-image", json=body))
    )
    caller.start()
    _wait_for(lambda: client.get("/requests/stop-me").json()["state"] == "running")

    assert client.post("/requests/stop-me/cancel").status_code == 202
    caller.join(20)

    assert (answers[0].status_code, answers[0].json()["error_code"]) == (499, "CANCELLED")


def test_a_client_that_goes_away_stops_the_work(
    client: httpx2.Client, worker: RunningWorker, files: FileServer, lora_data: bytes
) -> None:
    long = {"steps": 100, "num_images": 4, "width": 256, "height": 256}
    body = BASE | long | {"lora_url": files.add(lora_data)}
    with pytest.raises(httpx2.ReadTimeout), httpx2.Client(base_url=worker.url, timeout=1) as hasty:
        hasty.post("/generate-image", json=body)

    _wait_for(lambda: worker.engine.runs.running == 0)


# --- progress, repetition, the line --------------------------------------------------------------


def events(client: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    headers = {"Accept": "text/event-stream"}
    with client.stream("POST", "/generate-image", json=BASE | fields, headers=headers) as answer:
        text = "".join(answer.iter_text())
    return [json.loads(data) for data in re.findall(r"^data: (.*)$", text, re.MULTILINE)]


def test_progress_is_streamed_before_the_result(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    seen = events(client, steps=6, lora_url=files.add(lora_data))

    phases = [event["phase"] for event in seen if event["type"] == "progress"]
    assert list(dict.fromkeys(phases))[-5:] == [
        "text_encode",
        "denoise",
        "decode",
        "restore",
        "image_encode",
    ]
    steps = [e["step"] for e in seen if e["type"] == "progress" and e["phase"] == "denoise"]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    previews = [event for event in seen if event["type"] == "preview"]
    assert base64.b64decode(previews[0]["image_base64"]).startswith(b"\xff\xd8")
    assert seen[-1]["type"] == "result"
    assert seen[-1]["result"]["model_clean"] is True


def test_a_failure_in_a_stream_is_its_last_event(client: httpx2.Client, files: FileServer) -> None:
    last = events(client, lora_url=files.url("/missing"))[-1]

    assert (last["type"], last["status"]) == ("error", 400)
    assert last["error"]["error_code"] == "LORA_DOWNLOAD_FAILED"


def test_a_repeated_request_id_is_drawn_once(
    client: httpx2.Client, worker: RunningWorker, files: FileServer, lora_data: bytes
) -> None:
    files.add(lora_data)
    before = worker.engine.metrics.requests.labels("ok")._value.get()
    answers = []

    def call(signature: str) -> None:
        body = BASE | {
            "request_id": "once",
            "steps": 8,
            "lora_url": files.url("/lora.safetensors", signature),
        }
        answers.append(client.post("/generate-image", json=body))

    callers = [threading.Thread(target=call, args=(f"sig={n}",)) for n in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    call("sig=later")

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["image_sha256"] for answer in answers}) == 1
    assert worker.engine.metrics.requests.labels("ok")._value.get() == before + 1


def test_a_request_id_cannot_be_used_for_something_else(client: httpx2.Client) -> None:
    draw(client, request_id="taken")
    status, body = refused(client, request_id="taken", prompt="something else")

    assert (status, body["details"]["field"]) == (422, "request_id")


def test_a_full_line_says_when_to_come_again(worker: RunningWorker) -> None:
    config = settings(queue_max=1)
    engine = Engine(config)
    engine._ready = worker.engine._ready
    with running_worker(config, _Loaded(config, worker)) as busy:
        slow = BASE | {"steps": 60, "width": 256, "height": 256}

        def call(n: int) -> None:
            with httpx2.Client(base_url=busy.url, timeout=60) as http:
                http.post("/generate-image", json=slow | {"request_id": f"slow{n}"})

        callers = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(2)]
        callers[0].start()
        _wait_for(lambda: busy.engine.runs.running == 1 and busy.engine.runs.waiting == 0)
        callers[1].start()
        _wait_for(lambda: busy.engine.runs.waiting == 1)
        with httpx2.Client(base_url=busy.url, timeout=60) as http:
            status, body = refused(http)
            for n in range(2):
                http.post(f"/requests/slow{n}/cancel")

        assert (status, body["error_code"]) == (429, "OVERLOADED")
        assert body["retry_after"] >= 1
        for caller in callers:
            caller.join(20)


class _Loaded(Engine):
    """An engine that takes over an already loaded model instead of loading it again."""

    def __init__(self, config: Any, worker: RunningWorker) -> None:
        super().__init__(config)
        self._loaded = worker.engine._ready

    async def load(self) -> None:
        self._ready = self._loaded


# --- health, the door, unknown paths --------------------------------------------------------------


def test_health_describes_the_model(client: httpx2.Client) -> None:
    short = Health.model_validate(client.get("/health").json())
    long = Health.model_validate(client.get("/health?include=modules").json())

    assert short.signature is not None
    assert long.signature is not None
    assert short.signature.modules == {}
    assert len(long.signature.modules) > 200
    assert short.limits.native_size == 128


def test_a_wrong_token_is_refused_and_health_stays_open(worker: RunningWorker) -> None:
    config = settings(worker_api_token="right-and-long-enough")
    with (
        running_worker(config, _Loaded(config, worker)) as closed,
        httpx2.Client(base_url=closed.url, timeout=60) as http,
    ):
        assert http.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = http.post("/generate-image", json=BASE, headers=headers)
            assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHORIZED")
            for page in ("/docs", "/openapi.json"):
                assert http.get(page, headers=headers).status_code == 401
        right = {"Authorization": "Bearer right-and-long-enough"}
        shown = http.get("/docs", headers=right)
        assert "/generate-image" in shown.text
        assert "<script" not in shown.text
        assert "frame-ancestors 'none'" in shown.headers["content-security-policy"]
        assert http.post("/generate-image", json=BASE, headers=right).status_code == 200
        assert "/generate-image" in http.get("/openapi.json", headers=right).json()["paths"]


def test_which_loras_are_held_is_shown_to_whoever_has_the_token_only(
    client: httpx2.Client, worker: RunningWorker, files: FileServer, lora_data: bytes
) -> None:
    draw(client, lora_url=files.add(lora_data))
    digest = hashlib.sha256(lora_data).hexdigest()
    config = settings(worker_api_token="right-and-long-enough")
    with running_worker(config, _Loaded(config, worker)) as closed:
        right = {"Authorization": "Bearer right-and-long-enough"}
        for headers, shown in (({}, False), ({"Authorization": "Bearer no"}, False), (right, True)):
            answer = httpx2.get(f"{closed.url}/health", headers=headers)
            assert (digest in answer.text) is shown
    assert digest not in client.get("/health").text


def test_a_model_that_cannot_be_loaded_says_so(tmp_path: Any) -> None:
    with (
        running_worker(settings(base_model=str(tmp_path))) as broken,
        httpx2.Client(base_url=broken.url, timeout=60) as http,
    ):
        health = http.get("/health")
        status, body = refused(http)

    assert health.status_code == 503
    assert health.json()["status"] == "failed"
    assert (status, body["error_code"]) == (503, "MODEL_LOAD_FAILED")
    assert str(tmp_path.parent) not in health.text + json.dumps(body)


@pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("GET", "/generate-image")])
def test_unknown_paths_and_methods_have_the_one_error_shape(
    client: httpx2.Client, method: str, path: str
) -> None:
    answer = client.request(method, path)

    assert answer.status_code in (404, 405)
    assert answer.json()["error_code"] == "INVALID_REQUEST"


def test_a_huge_body_is_refused(client: httpx2.Client) -> None:
    answer = client.post("/generate-image", content=b"x" * (2 << 20))

    assert (answer.status_code, answer.json()["error_code"]) == (413, "INVALID_REQUEST")


def test_a_body_that_does_not_come_is_let_go(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdxl_worker.api._BODY_SECONDS", 0.2)

    def never() -> Iterator[bytes]:
        yield b"{"
        time.sleep(0.6)
        yield b"}"

    answer = client.post("/generate-image", content=never())

    assert (answer.status_code, answer.json()["error_code"]) == (408, "INVALID_REQUEST")


def test_metrics_count_what_happened(client: httpx2.Client) -> None:
    draw(client)
    text = client.get("/metrics").text

    assert re.search(r'sdxl_worker_requests_total\{outcome="ok"\} [1-9]', text)
    assert re.search(r"sdxl_worker_restores_verified_total [1-9]", text)
