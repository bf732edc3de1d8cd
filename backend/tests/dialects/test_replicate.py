"""`/replicate/v1` with the `replicate` package."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from sqlalchemy import URL
from standardwebhooks.webhooks import Webhook as Verifier

from app.dialects.replicate.schemas import InputIn, wait_seconds
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.result import Phase, ProgressEvent
from testkit.backend import Served, StartBackend, add_key
from testkit.doubles.inference_double import InferenceDouble
from testkit.doubles.webhook_receiver import receiving
from testkit.loras.plain_bytes import kohya_lora

API = "/replicate/v1"
SDXL = "stability-ai/sdxl"
VERSION = f"{SDXL}:{'7' * 64}"


@pytest.fixture
def client(served: Served) -> Client:
    return Client(api_token=served.key, base_url=f"{served.url}/replicate")


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def opened(served: Served, url: str) -> Any:
    return served.backend.http.get(url.split("8000", 1)[1])


async def test_run_waits_for_the_pictures_of_what_replicates_sdxl_is_asked(
    client: Client, served: Served, inference: InferenceDouble
) -> None:
    lora = await served.backend.upload(kohya_lora(), "Ink")
    output: Any = await client.async_run(
        VERSION,
        input={
            "prompt": "a red apple",
            "negative_prompt": "blurred",
            "width": 1024,
            "height": 768,
            "num_outputs": 2,
            "scheduler": "K_EULER",
            "num_inference_steps": 9,
            "guidance_scale": 3.5,
            "seed": 7,
            "refine": "no_refiner",
            "apply_watermark": False,
            "lora": "Ink",
            "lora_scale": 0.5,
        },
    )
    [request] = inference.requests
    assert (request.prompt, request.negative_prompt) == ("a red apple", "blurred")
    assert (request.width, request.height, request.num_images) == (1024, 768, 2)
    assert (request.steps, request.cfg, request.seed) == (9, 3.5, 7)
    assert request.scheduler.value == "euler"
    assert [(ref.sha256, ref.scale) for ref in request.loras] == [(lora["sha256"], 0.5)]
    assert len(output) == 2
    assert (await opened(served, output[0])).content.startswith(b"\x89PNG")
    # Of a model without a version, and of a deployment; what is open has Replicate's defaults.
    for run in (
        client.async_run("anyone/sdxl-lora", input={"prompt": "x", "aspect_ratio": "16:9"}),
        client.deployments.predictions.async_create("me/my-sdxl", input={"prompt": "x"}, wait=True),
    ):
        await run
    wide, plain = inference.requests[1:]
    assert (wide.width, wide.height, wide.steps, wide.cfg) == (1344, 768, 50, 7.5)
    assert plain.size(inference.limits) == (1024, 1024)


async def test_a_prediction_is_made_followed_listed_and_stopped(
    client: Client, served: Served, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    inference.event_pause = 0.55
    inference.events = [ProgressEvent(phase=Phase.DENOISE, step=8, steps=20, eta_seconds=3.0)]
    sent = {"prompt": "x", "num_inference_steps": 20, "unknown": ["kept", 1.5]}
    answer = await served.backend.http.post(
        f"{API}/models/{SDXL}/predictions", json={"input": sent}, headers={"Prefer": "wait=1"}
    )
    assert answer.json()["status"] == "starting"  # although it is being drawn
    made = await client.predictions.async_get(answer.json()["id"])
    assert (made.input, made.output) == (sent, None)
    assert len(made.version) == 64
    for _ in range(1000):
        await made.async_reload()
        if made.progress:
            break
        await asyncio.sleep(0.05)
    assert made.dict()["status"] == "processing"
    progress = made.progress
    assert progress is not None
    assert (progress.percentage, progress.current, progress.total) == (0.4, 8, 20)
    await made.async_cancel()
    inference.gate.set()
    for _ in range(1000):
        await made.async_reload()
        if made.completed_at:
            break
        await asyncio.sleep(0.05)
    assert made.dict()["status"] == "canceled"
    await made.async_cancel()  # once more: it stays as it is
    second = await client.models.predictions.async_create(SDXL, input={"prompt": "y"}, wait=True)
    assert second.status == "succeeded"
    assert second.metrics is not None
    assert set(second.metrics) == {"predict_time", "total_time", "image_count"}
    listed = await client.predictions.async_list()
    assert [one.id for one in listed.results] == [second.id, made.id]
    # What did not come by this API is no prediction, and neither is another key's.
    other = await served.backend.generate()
    for token, prediction in ((served.key, other["id"]), (served.other_key, second.id)):
        asked = Client(api_token=token, base_url=f"{served.url}/replicate")
        with pytest.raises(ReplicateError) as caught:
            await asked.predictions.async_get(prediction)
        assert caught.value.status == 404
    stranger = Client(api_token=served.other_key, base_url=f"{served.url}/replicate")
    assert (await stranger.predictions.async_list()).results == []


async def test_a_failure_is_a_model_error_with_its_reason(
    client: Client, inference: InferenceDouble
) -> None:
    inference.failures = [GenerationFailed("the picture is not finite")]
    with pytest.raises(ModelError, match="not finite"):
        await client.async_run(SDXL, input={"prompt": "x"})


async def test_models_versions_the_account_and_the_older_credential(
    client: Client, served: Served
) -> None:
    model = await client.models.async_get(SDXL)
    assert model.latest_version is not None
    schemas = model.latest_version.openapi_schema["components"]["schemas"]
    assert "num_inference_steps" in schemas["Input"]["properties"]
    assert "x-cog-array-type" not in schemas["Output"]
    assert (await model.versions.async_get(model.latest_version.id)).id == model.latest_version.id
    assert (await client.accounts.async_current()).username == "local"
    older = {"Authorization": f"Token {served.key}"}
    assert (await served.backend.http.get(f"{API}/account", headers=older)).status_code == 200
    # Nowhere else.
    assert (await served.backend.http.get("/v1/models", headers=older)).status_code == 401
    with pytest.raises(ReplicateError) as caught:
        await client.async_run("black-forest-labs/flux-dev", input={"prompt": "x"})
    assert (caught.value.status, "sdxl" in str(caught.value.detail)) == (404, True)


async def test_a_file_is_a_lora_of_the_library_and_its_url_applies_it(
    client: Client, served: Served, inference: InferenceDouble
) -> None:
    file = io.BytesIO(kohya_lora())
    sent = await client.files.async_create(file, filename="Ink.safetensors")
    assert (sent.name, sent.size) == ("Ink.safetensors", len(file.getvalue()))
    assert [one.id for one in await client.files.async_list()] == [sent.id]
    await client.async_run(SDXL, input={"prompt": "x", "lora_weights": sent.urls["get"]})
    # A file object among the inputs is sent first, and found to be there.
    await client.async_run(SDXL, input={"prompt": "x", "lora": io.BytesIO(kohya_lora())})
    assert [ref.sha256 for one in inference.requests for ref in one.loras] == [
        sent.checksums["sha256"]
    ] * 2
    other = Client(api_token=served.other_key, base_url=f"{served.url}/replicate")
    for call in (
        other.files.async_get(sent.id),
        other.files.async_delete(sent.id),
        other.async_run(SDXL, input={"prompt": "x", "lora": sent.urls["get"]}),
    ):
        with pytest.raises(ReplicateError) as caught:
            await call
        assert caught.value.status == 404
    await client.files.async_delete(sent.id)
    assert await client.files.async_list() == []
    with pytest.raises(ReplicateError, match="safetensors"):
        await client.files.async_create(io.BytesIO(b"no LoRA at all"))


async def test_a_prediction_is_drawn_over_a_picture(
    client: Client, served: Served, inference: InferenceDouble
) -> None:
    # As the client sends a file: it puts it to the files first, and names its URL.
    output: Any = await client.async_run(
        SDXL,
        input={"prompt": "x", "image": io.BytesIO(png("red")), "mask": io.BytesIO(png("white"))},
    )
    # By its own output, and as the AI SDK sends it.
    encoded = f"data:image/png;base64,{base64.b64encode(png('blue')).decode()}"
    for image in (str(output[0]), encoded):
        given = {"prompt": "x", "image": image, "prompt_strength": 0.5}
        await client.async_run(SDXL, input=given)
    masked, over, third = inference.requests
    assert masked.image is not None
    assert masked.mask is not None
    assert (masked.strength, masked.mask.invert) == (0.8, False)
    assert (over.strength, over.mask) == (0.5, None)
    assert len({one.image and one.image.sha256 for one in (masked, over, third)}) == 3
    sent = [one for one in await client.files.async_list() if one.content_type == "image/png"]
    assert len(sent) == 4
    # The JavaScript client sends its metadata as a second file.
    files: Any = {"content": ("a", png("blue")), "metadata": ("blob", b"{}", "application/json")}
    made = await served.backend.http.post(f"{API}/files", files=files)
    assert (made.status_code, made.json()["content_type"]) == (201, "image/png"), made.text
    # Neither another key's file nor a changed URL of this server's own.
    stranger = Client(api_token=served.other_key, base_url=f"{served.url}/replicate")
    for asking, image, status in (
        (stranger, sent[0].urls["get"], 404),
        (client, str(output[0])[:-1], 422),
        (client, f"{served.url}/files/owners/local/loras/x.safetensors", 422),
        (client, f"{served.url}{API}/files/nothing", 404),
    ):
        with pytest.raises(ReplicateError) as caught:
            await asking.async_run(SDXL, input={"prompt": "x", "image": image})
        assert (caught.value.status, len(inference.requests)) == (status, 3)
    assert (await client.files.async_get(sent[0].id)).content_type == "image/png"
    await client.files.async_delete(sent[0].id)
    assert len(await client.files.async_list()) == 3


async def test_a_webhook_gets_the_prediction_signed_with_the_accounts_secret(
    start_backend: StartBackend, database_url: URL, inference: InferenceDouble
) -> None:
    async with start_backend(webhook_allow_loopback=True) as backend, receiving() as receiver:
        backend.http.headers.update(await add_key(database_url, "local"))
        secret = (await backend.http.get(f"{API}/webhooks/default/secret")).json()["key"]
        body = {"input": {"prompt": "x"}, "webhook": f"{receiver.url}?id=1"}
        made = await backend.http.post(f"{API}/models/{SDXL}/predictions", json=body)
        told: list[Any] = []
        for _ in range(1000):
            if len(receiver.messages) == 3:
                break
            await asyncio.sleep(0.05)
        for message in receiver.messages:
            assert message.path == "/hook?id=1"
            told.append(Verifier(secret).verify(message.body, message.headers))
        assert {one["id"] for one in told} == {made.json()["id"]}
        assert sum(one["status"] == "succeeded" for one in told) >= 2
        done = next(one for one in told if one["status"] == "succeeded")
        assert done["output"][0].startswith("http")
        assert done["input"] == {"prompt": "x"}
        # Only what is asked for; a URL that is gone concerns no other one.
        receiver.answer = lambda _: 410
        body["webhook_events_filter"] = ["completed"]
        for _ in range(2):
            await backend.http.post(f"{API}/models/{SDXL}/predictions", json=body)
        for _ in range(1000):
            if len(receiver.messages) == 5:
                break
            await asyncio.sleep(0.05)
        assert len(receiver.messages) == 5
        # The owner's own list of webhooks does not show them.
        assert (await backend.http.get("/api/v1/webhooks")).json()["items"] == []
        body["webhook"] = "http://10.0.0.1/"
        refused = await backend.http.post(f"{API}/models/{SDXL}/predictions", json=body)
        assert (refused.status_code, refused.json()["field"]) == (422, "webhook")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": " "}, "input.prompt", "blank"),
    ({"width": 1001}, "input.width", "nearest"),
    ({"num_outputs": 9}, "input.num_outputs", "at most 8"),
    ({"num_inference_steps": 500}, "input.num_inference_steps", "at most 100"),
    ({"guidance_scale": 50}, "input.guidance_scale", "at most 20"),
    ({"scheduler": "PNDM"}, "input.scheduler", "K_EULER"),
    ({"size": "large"}, "input.size", "1024x768"),
    ({"aspect_ratio": "7:1"}, "input.aspect_ratio", "16:9"),
    ({"refine": "base_image_refiner"}, "input.refine", "no_refiner"),
    ({"image": "http://10.0.0.1/x.png"}, "input.image", "public"),
    ({"image": "data:,x"}, "input.image", "base64"),
    ({"image": "data:image/png;base64,eHg="}, "input.image", "PNG"),
    ({"mask": "https://example.com/x.png"}, "input.image", "needs a picture"),
    ({"prompt_strength": 1.5}, "input.prompt_strength", "at most 1"),
    ({"lora": "Inc"}, "input.lora", "Near: “Ink”"),
    ({"lora": "http://127.0.0.1/x"}, "input.lora", "public"),
    ({"lora": "data:,x"}, "input.lora", "base64"),
    ({"loras": [{}]}, "input.loras[0].path", "LoRA"),
    ({"extra": "\x00"}, "input", "NUL"),
]


async def test_a_wrong_input_is_refused_by_its_name(served: Served) -> None:
    await served.backend.upload(kohya_lora(), "Ink")
    for body, field, hint in WRONG:
        answer = await served.backend.http.post(
            f"{API}/models/{SDXL}/predictions", json={"input": {"prompt": "x", **body}}
        )
        assert answer.status_code in (400, 404, 422), (body, answer.text)
        assert (answer.json()["field"], hint in answer.json()["detail"]) == (field, True), (
            answer.text
        )
    http = served.backend.http
    deep = json.dumps({"input": {"prompt": "x"}})[:-2] + ', "a": ' + "[" * 50 + "]" * 50 + "}}"
    for path, content in (
        ("predictions", "{}"),
        (f"models/{SDXL}/predictions", "[]"),
        (f"models/{SDXL}/predictions", deep),
        (f"models/{SDXL}/predictions", '{"input": {"prompt": "x", "a": 1e999}}'),
    ):
        answer = await http.post(f"{API}/{path}", content=content)
        assert answer.status_code == 422, (content, answer.text)
    for path in ("predictions/nothing", "files/nothing", "predictions/%00"):
        assert (await http.get(f"{API}/{path}")).status_code == 404


def test_prefer_says_how_long_to_wait() -> None:
    for text, seconds in (
        ("", 0), ("wait", 60), ("wait=5", 5), ("respond-async, wait=900", 60), ("awaiting", 0),
    ):  # fmt: skip
        assert wait_seconds(text) == seconds


def test_ratios_follow_the_models_native_side() -> None:
    asked = InputIn(aspect_ratio="16:9").as_asked(512)
    assert (asked.width, asked.height) == (672, 384)
    # As the AI SDK names it.
    asked = InputIn(size="640x512").as_asked(512)
    assert (asked.width, asked.height) == (640, 512)


async def test_polling_counts_towards_no_rate(
    start_backend: StartBackend, database_url: URL
) -> None:
    async with start_backend(requests_per_minute=5) as backend:
        backend.http.headers.update(await add_key(database_url, "local"))
        body = {"input": {"prompt": "x"}}
        made = await backend.http.post(f"{API}/models/{SDXL}/predictions", json=body)
        place = f"{API}/predictions/{made.json()['id']}"
        assert {(await backend.http.get(place)).status_code for _ in range(8)} == {200}
        statuses = [(await backend.http.get(f"{API}/account")).status_code for _ in range(8)]
        assert statuses[-1] == 429
