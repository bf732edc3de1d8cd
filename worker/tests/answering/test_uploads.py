"""A picture that is to be uploaded: when that is looked at, and how long it is waited for."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from typing import Any

import httpx2
import pytest
from PIL import Image

from testkit.worker import SIDE, FileServer, RunningWorker, running_worker, settings

BASE: dict[str, Any] = {"prompt": "a pear", "width": SIDE, "height": SIDE, "steps": 1, "seed": 5}


def refusals(text: str, code: str) -> float:
    """The counter of refused requests with `code` in the metrics' `text`."""
    wanted = f'sdxl_worker_requests_total{{outcome="{code}"}} '
    found = [line.removeprefix(wanted) for line in text.splitlines() if line.startswith(wanted)]
    return float(found[0]) if found else 0.0


def test_a_place_that_is_refused_is_refused_before_anything_is_drawn(
    client: httpx2.Client, worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.engine._ready is not None
    drawn: list[object] = []
    monkeypatch.setattr(worker.engine._ready.drawer, "draw", lambda *a, **k: drawn.append(a))
    answer = client.post("/generate-image", json=BASE | {"output_url": "https://10.0.0.1/x?sig=1"})

    assert (answer.status_code, answer.json()["error_code"]) == (400, "LORA_DOWNLOAD_FAILED")
    assert answer.json()["details"]["field"] == "output_url"
    assert drawn == []


def test_each_image_is_uploaded_to_its_own_place(client: httpx2.Client, files: FileServer) -> None:
    places = [files.url("/1.png"), files.url("/2.png")]
    answer = client.post("/generate-image", json=BASE | {"num_images": 2, "output_urls": places})

    assert answer.status_code == 200, answer.text
    body = answer.json()
    stored = [hashlib.sha256(files.puts[f"/{n}.png"]).hexdigest() for n in (1, 2)]
    assert [image["image_sha256"] for image in body["images"]] == stored
    assert "image_base64" not in answer.text


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_what_nobody_can_sign_afterwards_says_that_a_model_made_it(
    client: httpx2.Client, files: FileServer, kind: str
) -> None:
    wanted = BASE | {"output_format": kind}
    answered = client.post("/generate-image", json=wanted).json()["image_base64"]
    place = {"output_url": files.url("/made")}
    assert client.post("/generate-image", json=wanted | place).status_code == 200

    with Image.open(io.BytesIO(files.puts["/made"])) as uploaded:
        described = uploaded.getxmp()["xmpmeta"]["RDF"]["Description"]["DigitalSourceType"]
        pixels = uploaded.convert("RGB").tobytes()
    assert described.endswith("digitalsourcetype/trainedAlgorithmicMedia")
    with Image.open(io.BytesIO(base64.b64decode(answered))) as plain:
        assert plain.getxmp() == {}
        assert plain.convert("RGB").tobytes() == pixels


def test_no_image_is_drawn_that_would_be_lost(client: httpx2.Client, files: FileServer) -> None:
    places = {"num_images": 2, "output_url": files.url("/1.png")}
    answer = client.post("/generate-image", json=BASE | places)
    assert (answer.status_code, answer.json()["details"]["field"]) == (422, "output_url")

    inner = {"num_images": 2, "output_urls": [files.url("/1.png"), "https://10.0.0.1/2"]}
    answer = client.post("/generate-image", json=BASE | inner)
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "output_urls[1]")
    assert files.puts == {}


def test_the_request_s_timeout_ends_an_upload(client: httpx2.Client, files: FileServer) -> None:
    files.put_delay_s = 600
    answer = client.post(
        "/generate-image", json=BASE | {"timeout": 1, "output_url": files.url("/out.png")}
    )

    assert (answer.status_code, answer.json()["error_code"]) == (504, "TIMEOUT")


def test_a_cancel_ends_an_upload(
    client: httpx2.Client, worker: RunningWorker, files: FileServer
) -> None:
    files.put_delay_s = 600
    body = BASE | {"request_id": "uploading", "output_url": files.url("/out.png")}
    answers: list[httpx2.Response] = []
    caller = threading.Thread(
        target=lambda: answers.append(client.post("/generate-image", json=body))
    )
    caller.start()
    deadline = time.monotonic() + 20
    while "/out.png" not in files.puts:
        assert time.monotonic() < deadline, "the upload never began"
        time.sleep(0.01)
    client.post("/requests/uploading/cancel")
    caller.join(30)

    assert [answer.json()["error_code"] for answer in answers] == ["CANCELLED"]


def test_a_lora_with_a_broken_etag_can_be_used_again(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    def script(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("ETag", "\xe9")
        handler.send_header("Content-Length", str(len(lora_data)))
        handler.end_headers()
        handler.wfile.write(lora_data)

    files.scripts["/odd.safetensors"] = script
    for _ in range(2):
        answer = client.post(
            "/generate-image", json=BASE | {"lora_url": files.url("/odd.safetensors")}
        )
        assert answer.status_code == 200, answer.text


def test_refused_requests_are_counted_by_their_code(client: httpx2.Client) -> None:
    before = client.get("/metrics").text
    for fields in ({"steps": 0}, {"prompt": " "}, {"prompt": "(a:b)"}, {"steps": "many"}):
        assert client.post("/generate-image", json=BASE | fields).status_code in (400, 422)
    after = client.get("/metrics").text

    for code in ("INVALID_REQUEST", "INVALID_PROMPT"):
        assert refusals(after, code) - refusals(before, code) == 2


def test_health_states_the_size_of_files_that_this_worker_takes(worker: RunningWorker) -> None:
    assert worker.engine._ready is not None
    model = worker.engine._ready.model
    from sdxl_worker.engine import Engine

    config = settings(lora_max_bytes=12_345)
    with running_worker(config, Engine(config, load=lambda _: model)) as small:
        limits = httpx2.get(f"{small.url}/health").json()["limits"]

    assert limits["lora_max_bytes"] == 12_345
    assert limits["native_size"] == model.limits.native_size
