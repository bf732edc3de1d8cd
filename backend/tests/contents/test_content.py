"""Contents over HTTP: asked for, drawn by a double, stored, read back, removed."""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
from typing import Any

import pytest
from PIL import Image

from sdxl_contract.errors import CudaOutOfMemory, LoraDownloadFailed
from sdxl_contract.limits import ModelLimits
from sdxl_contract.prices import USD_PER_SECOND
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

GENERATE = "/api/v1/content/generate"


async def test_a_picture_is_drawn_stored_and_read_back(backend: Backend) -> None:
    content = await backend.generate(prompt="a cat", width=512, height=768, seed=7, steps=20)
    assert content["status"] == "succeeded"
    assert content["parameters"] == {
        "width": 512, "height": 768, "steps": 20, "cfg": 5.5, "seed": 7, "num_images": 1,
        "scheduler": "EulerDiscreteScheduler", "output_format": "png",
    }  # fmt: skip
    answer = await backend.http.get(content["image_url"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert hashlib.sha256(answer.content).hexdigest() == content["images"][0]["file_sha256"]
    assert Image.open(io.BytesIO(answer.content)).size == (512, 768)
    again = (await backend.http.get(f"/api/v1/content/{content['id']}")).json()
    assert again["images"][0]["sha256"] == content["images"][0]["sha256"]
    assert again["model_clean"] is True
    assert again["started_at"] is not None
    assert again["finished_at"] is not None


async def test_the_cost_is_the_gpu_seconds_without_the_waiting(backend: Backend) -> None:
    content = await backend.generate()
    assert content["cost"]["gpu"] == "L4"
    assert content["cost"]["seconds"] == 10.0
    assert content["cost"]["usd"] == pytest.approx(10 * USD_PER_SECOND["L4"])


async def test_a_cpu_has_seconds_but_no_price(start_backend: StartBackend) -> None:
    async with start_backend(inference=InferenceDouble(gpu="cpu")) as backend:
        content = await backend.generate()
        assert content["cost"] == {
            "usd": None,
            "gpu": "cpu",
            "seconds": 10.0,
            "parts": {
                "cold_start": {"usd": None, "seconds": 0.0},
                "lora": {"usd": None, "seconds": 0.0},
                "generation": {"usd": None, "seconds": 10.0},
            },
        }
        summary = (await backend.http.get("/api/v1/costs/summary")).json()
    assert summary["total"]["unpriced_seconds"] == 10.0
    assert summary["total"]["actual_usd"] == 0.0


async def test_the_summary_groups_by_day_avatar_and_lora(backend: Backend) -> None:
    lora = await backend.upload(kohya_lora())
    avatar = (
        await backend.http.post(
            "/api/v1/identities/avatars",
            json={"name": "Mia", "base_prompt": "Mia", "lora_model_id": lora["id"]},
        )
    ).json()
    await backend.generate(avatar_id=avatar["id"])
    await backend.generate()
    summary = (await backend.http.get("/api/v1/costs/summary", params={"days": 1})).json()
    price = 10 * USD_PER_SECOND["L4"]
    assert summary["total"]["contents"] == 2
    assert summary["total"]["actual_usd"] == pytest.approx(2 * price)
    assert summary["total"]["estimated_usd"] == pytest.approx(2 * price)
    assert len(summary["by_day"]) == 1
    assert {row["name"]: row["contents"] for row in summary["by_avatar"]} == {"Mia": 1, None: 1}
    assert [(row["name"], row["images"]) for row in summary["by_lora"]] == [("Ink", 1)]


async def test_respond_async_answers_at_once_and_says_where(
    backend: Backend, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    answer = await backend.http.post(
        GENERATE, json={"prompt": "x"}, headers={"Prefer": "respond-async"}
    )
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.json()["status"] in ("queued", "running")
    place = answer.headers["location"]
    assert place == f"/api/v1/content/{answer.json()['id']}"
    inference.gate.set()
    for _ in range(1000):
        content = (await backend.http.get(place)).json()
        if content["status"] == "succeeded":
            return
        await asyncio.sleep(0.05)
    raise AssertionError(content)


async def test_a_wait_that_is_too_short_answers_202(
    backend: Backend, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    answer = await backend.http.post(GENERATE, json={"prompt": "x"}, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    inference.gate.set()


@pytest.mark.parametrize(
    ("body", "status", "code", "field", "says"),
    [
        ({"prompt": "  "}, 400, "INVALID_PROMPT", "prompt", "blank"),
        ({"custom_prompt": ""}, 400, "INVALID_PROMPT", "custom_prompt", "blank"),
        ({}, 400, "INVALID_PROMPT", "prompt", "blank"),
        ({"prompt": "a" * 4001}, 400, "INVALID_PROMPT", "prompt", "4000"),
        ({"prompt": "a\x00b"}, 400, "INVALID_PROMPT", "prompt", "NUL"),
        ({"prompt": 5}, 400, "INVALID_PROMPT", "prompt", "string"),
        ({"prompt": "x", "width": 511}, 422, "INVALID_REQUEST", "width", "nearest allowed is 512"),
        (
            {"prompt": "x", "height": 1537}, 422, "INVALID_REQUEST", "height",
            "nearest allowed is 1536",
        ),
        ({"prompt": "x", "width": 700}, 422, "INVALID_REQUEST", "width", "nearest allowed is 704"),
        ({"prompt": "x", "steps": 0}, 422, "INVALID_REQUEST", "steps", "at least 1"),
        ({"prompt": "x", "steps": 101}, 422, "INVALID_REQUEST", "steps", "at most 100"),
        ({"prompt": "x", "cfg": 0.5}, 422, "INVALID_REQUEST", "cfg", "at least 1.0"),
        ({"prompt": "x", "seed": -1}, 422, "INVALID_REQUEST", "seed", "at least 0"),
        ({"prompt": "x", "seed": 2**32}, 422, "INVALID_REQUEST", "seed", "at most"),
        ({"prompt": "x", "num_images": 9}, 422, "INVALID_REQUEST", "num_images", "at most 8"),
        ({"prompt": "x", "sed": 1}, 422, "INVALID_REQUEST", "sed", "not a field"),
        (
            {"prompt": "x", "custom_prompt": "y"}, 422, "INVALID_REQUEST", "custom_prompt",
            "either",
        ),
        (
            {"prompt": "x", "loras": [{"lora_model_id": str(uuid.UUID(int=0)), "scale": 10.5}]},
            422, "INVALID_REQUEST", "loras[0].scale", "at most 10.0",
        ),
        (
            {"prompt": "x", "loras": [{"lora_model_id": str(uuid.UUID(int=0))}]},
            404, "NOT_FOUND", "loras[0].lora_model_id", "no LoRA",
        ),
        (
            {"prompt": "x", "avatar_id": str(uuid.UUID(int=0))},
            404, "NOT_FOUND", "avatar_id", "no avatar",
        ),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named_with_what_would_be_right(
    backend: Backend, body: dict[str, Any], status: int, code: str, field: str, says: str
) -> None:
    answer = await backend.http.post(GENERATE, json=body)
    problem = answer.json()
    assert (answer.status_code, problem["error_code"], problem["field"]) == (status, code, field)
    assert says in problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    page = (await backend.http.get("/api/v1/content")).json()
    assert page["items"] == []


async def test_half_a_surrogate_pair_is_refused(backend: Backend) -> None:
    answer = await backend.http.post(
        GENERATE,
        content=b'{"prompt": "x\\ud800"}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code in (400, 422)


async def test_limits_and_sizes_are_the_loaded_models(start_backend: StartBackend) -> None:
    small = ModelLimits(native_size=128, min_side=64, max_side=192)
    async with start_backend(inference=InferenceDouble(limits=small)) as backend:
        content = await backend.generate()
        assert (content["parameters"]["width"], content["parameters"]["height"]) == (128, 128)
        problem = await backend.generate(expected=422, width=512)
        assert "nearest allowed is 192" in problem["detail"]
        shown = (await backend.http.get("/api/v1/model")).json()
        assert shown["limits"]["native_size"] == 128
        assert shown["worker"] == "ready"


async def test_limits_are_kept_while_the_worker_is_down(start_backend: StartBackend) -> None:
    worker = InferenceDouble(limits=ModelLimits(native_size=128, min_side=64, max_side=192))
    async with start_backend(inference=worker):
        pass
    worker.is_up = False
    async with start_backend(inference=worker) as backend:
        shown = (await backend.http.get("/api/v1/model")).json()
        assert (shown["limits"]["native_size"], shown["worker"]) == (128, "unreachable")
        ready = await backend.http.get("/health/ready")
        assert (ready.status_code, ready.json()["worker"]) == (200, "unreachable")


async def test_several_pictures_have_their_own_seeds(backend: Backend) -> None:
    content = await backend.generate(num_images=3, seed=10)
    assert [image["seed"] for image in content["images"]] == [10, 11, 12]
    assert len({image["sha256"] for image in content["images"]}) == 3
    assert content["image_url"].split("?")[0] == content["images"][0]["url"].split("?")[0]


async def test_a_seed_is_chosen_at_acceptance_and_kept(
    backend: Backend, inference: InferenceDouble
) -> None:
    content = await backend.generate()
    assert inference.requests[0].seed == content["parameters"]["seed"]
    assert content["images"][0]["seed"] == content["parameters"]["seed"]


async def test_an_avatar_adds_its_prompt_its_negative_and_its_lora(
    backend: Backend, inference: InferenceDouble
) -> None:
    lora = await backend.upload(kohya_lora())
    avatar = (
        await backend.http.post(
            "/api/v1/identities/avatars",
            json={
                "name": "Mia", "base_prompt": "Mia, red hair", "negative_prompt": "blurry",
                "lora_model_id": lora["id"],
            },
        )
    ).json()  # fmt: skip
    content = await backend.generate(
        prompt="on a beach", negative_prompt="rain", avatar_id=avatar["id"]
    )
    request = inference.requests[0]
    assert request.prompt == "Mia, red hair, on a beach"
    assert request.negative_prompt == "blurry, rain"
    assert [(ref.scale, ref.sha256) for ref in request.loras] == [(0.9, lora["sha256"])]
    assert content["loras"][0]["lora_model_id"] == lora["id"]
    assert content["loras"][0]["modules_matched"] == 1
    await backend.generate(
        avatar_id=avatar["id"], loras=[{"lora_model_id": lora["id"], "scale": 0.3}]
    )
    assert [ref.scale for ref in inference.requests[1].loras] == [0.3]
    listed = (await backend.http.get("/api/v1/content", params={"avatar_id": avatar["id"]})).json()
    assert len(listed["items"]) == 2


async def test_the_lora_url_is_signed_for_the_worker_at_dispatch(
    backend: Backend, inference: InferenceDouble
) -> None:
    data = kohya_lora()
    lora = await backend.upload(data)
    await backend.generate(loras=[{"lora_model_id": lora["id"], "scale": 1.5}])
    ref = inference.requests[0].loras[0]
    answer = await backend.http.get(ref.url)
    assert answer.status_code == 200
    assert answer.content == data
    assert ref.scale == 1.5


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (CudaOutOfMemory("try 768 x 768"), "CUDA_OOM", "try 768 x 768"),
        (LoraDownloadFailed("refused", details={"reason": "expired"}), "LORA_DOWNLOAD_FAILED", ""),
        (RuntimeError("secret-path /srv/x"), "GENERATION_FAILED", "log"),
    ],
)
async def test_a_failure_is_written_down_and_the_next_picture_works(
    backend: Backend, inference: InferenceDouble, failure: Exception, code: str, says: str
) -> None:
    inference.failures.append(failure)
    content = await backend.generate()
    assert content["status"] == "failed"
    assert content["error"]["code"] == code
    assert says in content["error"]["message"]
    assert "secret-path" not in content["error"]["message"]
    assert content["finished_at"] is not None
    assert (await backend.generate())["status"] == "succeeded"


async def test_the_same_idempotency_key_gives_the_same_content(
    backend: Backend, inference: InferenceDouble
) -> None:
    key = {"Idempotency-Key": "order-1"}
    answers = await asyncio.gather(*(backend.generate(headers=key) for _ in range(4)))
    assert len({answer["id"] for answer in answers}) == 1
    assert len(inference.requests) == 1
    conflict = await backend.generate(expected=409, prompt="another", headers=key)
    assert conflict["error_code"] == "CONFLICT"
    await backend.generate(expected=422, headers={"Idempotency-Key": "a" * 256})


async def test_pages_are_newest_first_and_never_overlap(backend: Backend) -> None:
    made = [(await backend.generate(prompt=f"number {n}"))["id"] for n in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await backend.http.get("/api/v1/content", params=query)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    failed = await backend.http.get("/api/v1/content", params={"status": "failed"})
    assert failed.json()["items"] == []


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 201}, {"status": "lost"}, {"cursor": "%%"}, {"cursor": "YQ"}]
)
async def test_a_wrong_query_is_named(backend: Backend, query: dict[str, Any]) -> None:
    answer = await backend.http.get("/api/v1/content", params=query)
    assert answer.status_code == 422
    assert answer.json()["field"] == next(iter(query))


async def test_a_deleted_content_is_gone_with_its_pictures(backend: Backend) -> None:
    content = await backend.generate()
    place = f"/api/v1/content/{content['id']}"
    assert (await backend.http.delete(place)).status_code == 204
    assert (await backend.http.get(place)).status_code == 404
    assert (await backend.http.get(content["image_url"])).status_code == 404
    assert (await backend.http.delete(place)).status_code == 404


async def test_deleting_a_running_content_stops_it_and_leaves_no_file(
    backend: Backend, inference: InferenceDouble, settings: Any
) -> None:
    inference.gate.clear()
    content = await backend.generate(expected=202, headers={"Prefer": "respond-async"})
    while not inference.requests:
        await asyncio.sleep(0.02)
    assert (await backend.http.delete(f"/api/v1/content/{content['id']}")).status_code == 204
    assert inference.cancelled == [content["id"]]
    inference.cancelled.clear()  # the worker may finish all the same
    inference.gate.set()
    assert (await backend.generate())["status"] == "succeeded"
    images = settings.data_dir / "objects" / "owners" / "local" / "images"
    for _ in range(1000):
        if len(list(images.rglob("*.png"))) == 1:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the late attempt left its picture behind")


@pytest.mark.parametrize(
    "path", ["/api/v1/content/nonsense", f"/api/v1/content/{uuid.UUID(int=7)}"]
)
async def test_an_unknown_id_is_not_found(backend: Backend, path: str) -> None:
    answer = await backend.http.get(path)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "NOT_FOUND")


async def _metrics(backend: Backend) -> str:
    return (await backend.http.get("/metrics")).text


async def test_metrics_and_the_schema_are_there(backend: Backend) -> None:
    await backend.generate()
    # Counted once the end is written, of which whoever waits may hear first.
    async with asyncio.timeout(30):
        while 'content_ended_total{status="succeeded"} 1.0' not in await _metrics(backend):
            await asyncio.sleep(0.01)
    schema = (await backend.http.get("/openapi.json")).json()
    assert "/api/v1/content/generate" in schema["paths"]
    assert (await backend.http.get("/health/live")).json() == {"status": "live"}
