"""`/fal` with `fal-client`, which insists on https, and as its JavaScript client calls it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

import fal_client
import fal_client.client
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from PIL import Image
from sqlalchemy import URL

from app.dialects.fal.schemas import InputIn
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.result import Phase, ProgressEvent
from testkit.backend import Served, StartBackend, add_key
from testkit.doubles.inference_double import InferenceDouble
from testkit.doubles.webhook_receiver import receiving
from testkit.loras.plain_bytes import kohya_lora

APP = "fal-ai/fast-sdxl"
QUEUE = f"/fal/queue/{APP}"


async def test_a_request_is_queued_followed_and_read(
    fal: fal_client.AsyncClient, served: Served, inference: InferenceDouble
) -> None:
    lora = await served.backend.upload(kohya_lora(), "Ink")
    handle = await fal.submit(
        APP,
        {
            "prompt": "a red apple",
            "negative_prompt": "blurred",
            "image_size": "landscape_4_3",
            "num_inference_steps": 9,
            "guidance_scale": 3.5,
            "num_images": 2,
            "seed": 7,
            "loras": [{"path": "Ink", "scale": 0.5}],
            "enable_safety_checker": True,
        },
    )
    result = await handle.get()
    [request] = inference.requests
    assert (request.prompt, request.negative_prompt) == ("a red apple", "blurred")
    assert (request.width, request.height, request.num_images) == (1024, 768, 2)
    assert (request.steps, request.cfg, request.seed) == (9, 3.5, 7)
    assert [(ref.sha256, ref.scale) for ref in request.loras] == [(lora["sha256"], 0.5)]
    assert (result["seed"], result["has_nsfw_concepts"]) == (7, [False, False])
    first = result["images"][0]
    assert (first["width"], first["height"], first["content_type"]) == (1024, 768, "image/jpeg")
    picture = await served.backend.http.get(first["url"].split("8000", 1)[1])
    assert picture.content.startswith(b"\xff\xd8")
    states = [type(state).__name__ async for state in handle.iter_events(with_logs=True)]
    assert states == ["Completed"]


async def test_run_subscribe_and_what_an_app_leaves_open(
    fal: fal_client.AsyncClient, inference: InferenceDouble
) -> None:
    result = await fal.run(APP, {"prompt": "x", "sync_mode": True})
    kind, _, data = result["images"][0]["url"].partition(";base64,")
    assert (kind, base64.b64decode(data)[:2]) == ("data:image/jpeg", b"\xff\xd8")
    body = {"prompt": "x", "model_name": "stabilityai/stable-diffusion-xl-base-1.0",
            "scheduler": "Euler (trailing timesteps)"}  # fmt: skip
    result = await fal.subscribe("fal-ai/lora", body)
    assert result["images"][0]["content_type"] == "image/png"
    fast, lora = inference.requests
    assert (fast.steps, fast.cfg) == (25, 7.5)
    assert (lora.steps, lora.scheduler.value) == (30, "euler_trailing")


async def test_a_request_is_drawn_over_a_picture(
    fal: fal_client.AsyncClient, inference: InferenceDouble
) -> None:
    red, white = (
        fal_client.encode_image(Image.new("RGB", (64, 64), colour), format="png")
        for colour in ("red", "white")
    )
    await fal.run(f"{APP}/image-to-image", {"prompt": "x", "image_url": red})
    given = {"prompt": "x", "image_url": red, "mask_url": white, "noise_strength": 0.75}
    await fal.run("fal-ai/lora/inpaint", {**given, "model_name": "sdxl"})
    await fal.run(APP, {"prompt": "x", "image_url": red, "strength": 0.25})
    over, masked, third = inference.requests
    assert [one.strength for one in inference.requests] == [0.95, 0.75, 0.25]
    assert over.image is not None
    assert (over.mask, third.image and third.image.sha256) == (None, over.image.sha256)
    assert masked.mask is not None
    assert masked.mask.sha256 != over.image.sha256


async def test_states_progress_and_cancelling(
    fal: fal_client.AsyncClient, served: Served, inference: InferenceDouble
) -> None:
    http = served.backend.http
    inference.gate.clear()
    inference.event_pause = 0.55
    inference.events = [ProgressEvent(phase=Phase.DENOISE, step=8, steps=20, eta_seconds=3.0)]
    handle = await fal.submit(APP, {"prompt": "x"})
    place = f"{QUEUE}/requests/{handle.request_id}"
    for _ in range(1000):
        answer = await http.get(f"{place}/status", params={"logs": 1})
        if answer.json()["logs"]:
            break
        await asyncio.sleep(0.05)
    assert (answer.status_code, answer.json()["status"]) == (202, "IN_PROGRESS")
    assert answer.json()["logs"][0]["message"] == "8/20"
    assert (await http.get(place)).status_code == 400
    streaming = asyncio.create_task(http.get(f"{place}/status/stream"))
    other = {"Authorization": f"Key {served.other_key}"}
    for method, path, status in (
        ("GET", f"{place}/status", 404),
        ("GET", f"{place}/status/stream", 404),
        ("GET", place, 404),
        ("PUT", f"{place}/cancel", 404),
        ("PUT", f"{QUEUE}/requests/nothing/cancel", 404),
    ):
        answer = await http.request(method, path, headers=other)
        assert answer.status_code == status, path
    waiting = [await fal.submit(APP, {"prompt": "y"}) for _ in range(3)]
    last = f"{QUEUE}/requests/{waiting[-1].request_id}"
    assert (await http.put(f"{last}/cancel")).status_code in (200, 202)
    stopped = await http.put(f"{place}/cancel")
    assert (stopped.status_code, stopped.json()["status"]) == (202, "CANCELLATION_REQUESTED")
    while not inference.cancelled:  # the worker has heard of it before the picture is there
        await asyncio.sleep(0.02)
    inference.gate.set()
    lines = (await asyncio.wait_for(streaming, 20)).text.split("\n\n")
    states = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert [state["status"] for state in states][-1] == "COMPLETED"
    assert states[-1]["error_type"] == "cancelled"
    late = await http.put(f"{place}/cancel")
    assert (late.status_code, late.json()["status"]) in (
        (200, "OK"),  # a cancelled content may be cancelled again
        (400, "ALREADY_COMPLETED"),
    )
    await waiting[0].get()
    late = await http.put(f"{QUEUE}/requests/{waiting[0].request_id}/cancel")
    assert (late.status_code, late.json()["status"]) == (400, "ALREADY_COMPLETED")


async def test_a_failure_is_an_error_of_the_result_and_is_not_asked_for_again(
    fal: fal_client.AsyncClient, served: Served, inference: InferenceDouble
) -> None:
    inference.failures = [GenerationFailed("the picture is not finite")]
    with pytest.raises(fal_client.client.FalClientHTTPError, match="not finite") as caught:
        await fal.run(APP, {"prompt": "x"})
    assert (caught.value.status_code, caught.value.error_type) == (500, "generation_failed")
    assert len(inference.requests) == 1


WRONG: list[tuple[dict[str, Any], list[Any], str]] = [
    ({"prompt": " "}, ["body", "prompt"], "blank"),
    ({"prompt": None}, ["body", "prompt"], ""),
    ({"image_size": "huge"}, ["body", "image_size"], "square_hd"),
    ({"image_size": {"width": 1001, "height": 1024}}, ["body", "image_size"], "nearest"),
    ({"num_images": 9}, ["body", "num_images"], "at most 8"),
    ({"num_inference_steps": 500}, ["body", "num_inference_steps"], "at most 100"),
    ({"scheduler": "PNDM"}, ["body", "scheduler"], "sampler"),
    ({"image_url": "http://10.0.0.1/x.png"}, ["body", "image_url"], "public"),
    ({"image_url": "data:image/png;base64,eHg="}, ["body", "image_url"], "PNG"),
    ({"mask_url": "https://example.com/x.png"}, ["body", "image_url"], "needs a picture"),
    ({"strength": 2}, ["body", "strength"], "at most 1"),
    ({"expand_prompt": True}, ["body", "expand_prompt"], "not offered"),
    ({"loras": [{"path": "http://10.0.0.1/x"}]}, ["body", "loras", 0, "path"], "public"),
]


async def test_a_wrong_field_is_a_422_with_its_place(served: Served) -> None:
    http = served.backend.http
    for body, place, hint in WRONG:
        answer = await http.post(QUEUE, json={"prompt": "x", **body})
        [found] = answer.json()["detail"]
        assert (answer.status_code, found["loc"], hint in found["msg"]) == (422, place, True), body
    for path, status in (
        ("/fal/queue/fal-ai/flux", 404),
        ("/fal/run/fal-ai/flux", 404),
        (f"{QUEUE}/image-to-image", 422),
        (f"{QUEUE}/upscale", 404),
        (f"{QUEUE}?fal_webhook=http://10.0.0.1/", 422),
    ):
        answer = await http.post(path, json={"prompt": "x"})
        assert answer.status_code == status, path
        assert answer.headers["x-fal-request-id"]
    empty = {"prompt": "x", "controlnets": [], "ip_adapter": [], "embeddings": [], "clip_skip": 0}
    assert (await http.post(QUEUE, json=empty)).status_code == 200


async def test_the_javascript_clients_proxied_calls_go_where_they_were_meant_to(
    served: Served,
) -> None:
    http = served.backend.http
    key = {"Authorization": f"Key {served.key}"}

    def to(url: str) -> dict[str, str]:
        return key | {"x-fal-target-url": url}

    sent = await http.post(
        "/fal/proxy", json={"prompt": "x"}, headers=to(f"https://queue.fal.run/{APP}?fal_webhook=")
    )
    assert sent.status_code == 422  # the target's query counts
    sent = await http.post(
        "/fal/proxy", json={"prompt": "x"}, headers=to(f"https://queue.fal.run/{APP}")
    )
    place = f"https://queue.fal.run/{APP}/requests/{sent.json()['request_id']}"
    for _ in range(1000):
        state = await http.get("/fal/proxy", headers=to(f"{place}/status?logs=0"))
        if state.json()["status"] == "COMPLETED":
            break
        await asyncio.sleep(0.05)
    result = await http.get("/fal/proxy", headers=to(place))
    assert result.json()["prompt"] == "x"
    run = await http.post("/fal/proxy", json={"prompt": "y"}, headers=to(f"https://fal.run/{APP}"))
    assert run.json()["prompt"] == "y"
    for url in ("", "https://evil.example/x", "https://[", f"https://queue.fal.run.evil/{APP}"):
        assert (await http.get("/fal/proxy", headers=to(url))).status_code in (400, 422), url
    # A target is no way past the prefix, nor past the key.
    out = await http.get("/fal/proxy", headers=to("https://queue.fal.run/../../api/v1/content"))
    assert out.status_code == 405  # it is one of the dialect's own, and takes POST only
    bare = {"Authorization": "", "x-fal-target-url": place}
    assert (await http.get("/fal/proxy", headers=bare)).status_code == 401


async def test_a_webhook_is_signed_as_fal_does(
    start_backend: StartBackend, database_url: URL, inference: InferenceDouble
) -> None:
    async with start_backend(webhook_allow_loopback=True) as backend, receiving() as receiver:
        backend.http.headers.update(await add_key(database_url, "local"))
        inference.failures = [GenerationFailed("not finite")]
        for _ in range(2):
            params = {"fal_webhook": receiver.url}
            await backend.http.post(QUEUE, json={"prompt": "x"}, params=params)
        for _ in range(1000):
            if len(receiver.messages) == 2:
                break
            await asyncio.sleep(0.05)
        open_call = await backend.http.get(
            "/fal/.well-known/jwks.json", headers={"Authorization": ""}
        )
        [key] = open_call.json()["keys"]
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
        told = {}
        for message in receiver.messages:
            parts = [
                message.headers[f"x-fal-webhook-{name}"]
                for name in ("request-id", "user-id", "timestamp")
            ]
            signed = "\n".join([*parts, hashlib.sha256(message.body).hexdigest()])
            signature = message.headers["x-fal-webhook-signature"]
            public.verify(bytes.fromhex(signature), signed.encode())
            told[message.json["status"]] = message.json
        assert told["OK"]["payload"]["images"][0]["url"].startswith("http")
        assert "not finite" in told["ERROR"]["error"]


def test_sizes_follow_the_models_native_side() -> None:
    asked = InputIn(prompt="x", image_size="landscape_16_9").as_asked("fast-sdxl", 512)
    assert (asked.width, asked.height) == (512, 288)
