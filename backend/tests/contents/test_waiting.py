"""What is accepted waits for what is away, and what was left open is decided by who draws."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.core.errors import StorageFailed
from app.core.settings import Settings
from app.services.contents import attempt as attempts
from app.services.lora_inference import LoraInference
from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
from app.services.storage import LocalStorage
from app.services.worker import gate
from app.services.worker.retry import RetryPolicy
from sdxl_contract.errors import (
    ContractError,
    GenerationFailed,
    InvalidRequest,
    LoraDownloadFailed,
    ModelLoadFailed,
    Overloaded,
    RequestTimeout,
)
from sdxl_contract.limits import ModelLimits
from sdxl_contract.prices import USD_PER_SECOND
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import Phase, ProgressEvent, QueuedEvent
from testkit.backend import CONTENT, Backend, StartBackend, ended
from testkit.doubles.bad_worker import good
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

ASYNC = {"Prefer": "respond-async"}
SMALL = ModelLimits(native_size=128, min_side=64, max_side=256)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come sooner than in life."""
    monkeypatch.setattr(attempts, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(gate, "_FIRST_S", 0.05)
    monkeypatch.setattr(gate, "_LOOK_S", 0.1)


async def read(backend: Backend, content_id: str) -> dict[str, Any]:
    content: dict[str, Any] = (await backend.http.get(f"{CONTENT}/{content_id}")).json()
    return content


async def seen_waiting(backend: Backend, content_id: str, reason: str) -> dict[str, Any]:
    """The content once it says that it waits for `reason`."""
    for _ in range(200):
        content = await read(backend, content_id)
        if (content["waiting_for"] or {}).get("reason") == reason:
            return content
        assert content["status"] in ("queued", "running"), content
        await asyncio.sleep(0.02)
    raise AssertionError(content)


async def attempts_of(backend: Backend, content_id: str) -> tuple[int, int]:
    async with backend.app.state.services.database.session() as session:
        row = await session.execute(
            text("SELECT attempt, releases FROM generation WHERE id = :id"), {"id": content_id}
        )
        attempt, releases = row.one()
        return attempt, releases


async def test_what_is_left_open_is_decided_by_the_worker_that_draws(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.is_up, inference.limits = False, SMALL
    async with start_backend() as backend:
        asked = await backend.generate(expected=202, headers=ASYNC, cfg=3)
        open_ones = ("width", "height", "steps", "scheduler", "output_format")
        assert [asked["parameters"][name] for name in open_ones] == [None] * 5
        assert asked["parameters"]["cfg"] == 3
        await seen_waiting(backend, asked["id"], "worker_unreachable")
        inference.is_up = True
        done = await ended(backend, asked["id"])
    assert done["status"] == "succeeded", done
    assert (done["images"][0]["width"], done["images"][0]["height"]) == (128, 128)
    assert done["parameters"] == {
        "width": 128, "height": 128, "steps": 28, "cfg": 3, "seed": asked["parameters"]["seed"],
        "num_images": 1, "scheduler": "EulerDiscreteScheduler", "output_format": "png",
    }  # fmt: skip
    [request] = inference.requests
    assert (request.width, request.height) == (None, None)
    assert request.model_fields_set.isdisjoint({"width", "height", "steps", "scheduler"})


async def test_a_size_that_was_never_held_against_a_worker_fails_there_with_its_field(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.is_up = False
    async with start_backend() as backend:
        # 2048 is more than SDXL's own limits allow, and nobody has said that they hold here.
        asked = await backend.generate(expected=202, headers=ASYNC, width=2048)
        inference.failures.append(
            InvalidRequest("width is 2048: at most 256", details={"field": "width", "nearest": 256})
        )
        inference.is_up = True
        done = await ended(backend, asked["id"])
    assert done["error"] == {
        "code": "INVALID_REQUEST",
        "message": "width is 2048: at most 256",
        "details": {"field": "width", "nearest": 256},
    }


async def test_limits_that_were_seen_hold_while_the_worker_is_away(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.limits = SMALL
    async with start_backend():
        pass
    inference.is_up = False
    async with start_backend() as backend:
        refused = await backend.generate(expected=422, width=512)
        assert refused["field"] == "width"
        named = await backend.generate(expected=422, scheduler="heun")
        assert named["field"] == "scheduler"
        assert "lcm" in named["detail"]
        await backend.generate(expected=202, headers=ASYNC, width=256, scheduler="lcm")


async def test_a_replay_asks_for_what_was_drawn_and_leaves_the_rest_open(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.limits = SMALL
    async with start_backend() as backend:
        first = await backend.generate()
        inference.limits = SMALL.model_copy(update={"native_size": 64})
        again = await backend.http.post(f"{CONTENT}/{first['id']}/replay")
        done = await ended(backend, again.json()["id"])
        assert done["parameters"] == first["parameters"]
        assert done["images"][0]["sha256"] == first["images"][0]["sha256"]
        inference.failures.append(GenerationFailed("no"))
        failed = await backend.generate()
        replayed = await backend.http.post(f"{CONTENT}/{failed['id']}/replay")
        assert replayed.json()["parameters"]["width"] is None
        assert (await ended(backend, replayed.json()["id"]))["parameters"]["width"] == 64


async def test_an_answer_with_another_seed_or_without_its_lora_is_none(
    start_backend: StartBackend,
) -> None:
    async def answer(change: dict[str, Any]) -> dict[str, Any]:
        def worker(call: httpx2.Request) -> httpx2.Response:
            if call.url.path != "/generate-image":
                return httpx2.Response(404)
            body = good(GenerateRequest.model_validate(json.loads(call.content))).json()
            for name, value in change.items():
                body[name] = body[name] | value
            return httpx2.Response(200, json=body)

        client = ModalSdxlLoraClient(
            "http://worker.example", policy=RetryPolicy(0), transport=httpx2.MockTransport(worker)
        )
        async with start_backend(inference=LoraInference(client)) as backend:
            lora = await backend.upload(kohya_lora(), expected=201 if change else 200)
            return await backend.generate(loras=[{"lora_model_id": lora["id"]}])

    other = await answer({"metadata": {"seed_used": 1}, "model_info": {"lora_applied": True}})
    assert "another seed" in other["error"]["message"]
    without = await answer({})
    assert "other LoRAs" in without["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ModelLoadFailed("the base model is still loading"), "worker_unreachable"),
        (ModelLoadFailed("gone", details={"reason": "unreachable"}), "worker_unreachable"),
        (Overloaded("full", retry_after=0.2), "worker_busy"),
        (GenerationFailed("502", details={"reason": "bad_answer", "http_status": 502}), None),
        (GenerationFailed("lost", details={"reason": "connection_lost"}), None),
        (RequestTimeout("no picture in 300 s", details={"reason": "deadline"}), "worker_busy"),
        (
            LoraDownloadFailed("503", status=502, details={"reason": "unreachable"}),
            "lora_unreachable",
        ),
    ],
)
async def test_what_passes_fails_nothing(
    start_backend: StartBackend,
    inference: InferenceDouble,
    failure: ContractError,
    reason: str | None,
) -> None:
    inference.failures += [failure] * (3 if reason is None else 1000)
    async with start_backend(job_max_attempts=1) as backend:
        asked = await backend.generate(expected=202, headers=ASYNC)
        if reason is not None:
            waiting = await seen_waiting(backend, asked["id"], reason)
            assert waiting["status"] == "queued"
            assert waiting["waiting_for"]["message"]
            del inference.failures[2:]  # seen, however slowly: two more, and it passes
        done = await ended(backend, asked["id"])
        assert done["status"] == "succeeded", done
        assert done["waiting_for"] is None
        attempts, releases = await attempts_of(backend, asked["id"])
        assert attempts - 1 == releases >= 3


@pytest.mark.parametrize(
    "failure",
    [
        ModelLoadFailed("no worker is set up", details={"reason": "modal_not_deployed"}),
        GenerationFailed("not a worker", details={"reason": "not_json"}),
        LoraDownloadFailed("gone", details={"reason": "http_status", "http_status": 404}),
    ],
)
async def test_what_does_not_pass_fails_at_once(
    backend: Backend, inference: InferenceDouble, failure: ContractError
) -> None:
    inference.failures.append(failure)
    content = await backend.generate()
    assert (content["status"], content["error"]["code"]) == ("failed", failure.code)


async def test_a_url_that_had_the_time_to_expire_is_signed_anew(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    expired = LoraDownloadFailed("its URL has expired", details={"reason": "expired"})
    inference.events, inference.event_pause = [QueuedEvent(position=1)], 1.1
    async with start_backend(lora_url_seconds=2, job_max_attempts=1) as backend:
        inference.failures += [expired] * 2
        done = await backend.generate()
        assert done["status"] == "succeeded", done
        assert await attempts_of(backend, done["id"]) == (3, 2)
        # One that is refused while it is young is a clock that is wrong.
        inference.event_pause = 0.0
        inference.failures.append(expired)
        assert (await backend.generate())["error"]["code"] == "LORA_DOWNLOAD_FAILED"


async def test_one_that_its_worker_dies_of_each_time_is_given_up(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.events = [ProgressEvent(phase=Phase.DENOISE, step=1, steps=20)]
    lost = GenerationFailed("lost", details={"reason": "connection_lost"})
    inference.failures += [lost] * 9
    async with start_backend(job_max_attempts=2) as backend:
        done = await backend.generate()
        assert "2 attempts that were interrupted" in done["error"]["message"]
        assert done["cost"]["seconds"] > 0


async def test_a_deadline_ends_the_waiting_and_says_what_for(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.is_up = False
    async with start_backend(content_deadline_seconds=3600) as backend:
        late = await backend.generate(expected=202, headers=ASYNC, deadline_seconds=1)
        other = await backend.generate(expected=202, headers=ASYNC)
        done = await ended(backend, late["id"])
        assert done["error"]["code"] == "TIMEOUT"
        assert "its deadline passed" in done["error"]["message"]
        assert "cannot be reached" in done["error"]["message"]
        events = (await backend.http.get(f"{CONTENT}/{late['id']}/events")).text
        assert events.count("event: failed") == 1
        assert (await read(backend, other["id"]))["status"] == "queued"
        answer = await backend.http.post(f"{CONTENT}/{other['id']}/cancel")
        assert answer.json()["status"] == "cancelled"
    assert inference.requests == []


async def test_a_wait_for_the_answer_gives_202_while_the_worker_is_away(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.is_up = False
    async with start_backend() as backend:
        asked = await backend.generate(expected=202, headers={"Prefer": "wait=1"})
        assert asked["status"] == "queued"
        await seen_waiting(backend, asked["id"], "worker_unreachable")
        model = (await backend.http.get("/api/v1/model")).json()
        assert model["known"] is False
        assert model["waiting_for"]["reason"] == "worker_unreachable"
        inference.is_up = True
        assert (await ended(backend, asked["id"]))["status"] == "succeeded"


async def test_events_begin_with_queued_and_tell_the_reason(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.is_up = False
    async with start_backend() as backend:
        asked = await backend.generate(expected=202, headers=ASYNC)
        await seen_waiting(backend, asked["id"], "worker_unreachable")
        watching = asyncio.create_task(backend.http.get(f"{CONTENT}/{asked['id']}/events"))
        await asyncio.sleep(0.3)
        inference.failures.append(ModelLoadFailed("it went again"))
        inference.is_up = True
        told = (await watching).text
    kinds = [line[7:] for line in told.splitlines() if line.startswith("event: ")]
    assert kinds[0] == "queued"
    assert "worker_unreachable" in told.split("\n\n")[0]
    # Back in line in between, and never `queued` where it had begun.
    assert [kind for kind in kinds if kind != "queued"] == ["started", "started", "succeeded"]
    assert kinds[-2:] == ["started", "succeeded"]


class FailingStorage(LocalStorage):
    """Away for the first `times` pictures; while `is_away`, for all."""

    times = 0
    is_away = False

    async def put(self, key: str, data: Any) -> None:
        if "/images/" in key and (self.is_away or self.times > 0):
            self.times -= 1
            raise StorageFailed("The object store is away.")
        await super().put(key, data)


async def test_a_picture_whose_store_is_away_is_stored_later_and_drawn_once(
    start_backend: StartBackend, inference: InferenceDouble, settings: Settings
) -> None:
    storage = FailingStorage(settings)
    storage.times = 2
    async with start_backend(storage=storage) as backend:
        done = await backend.generate()
        assert done["status"] == "succeeded"
        assert (await backend.http.get(done["image_url"])).status_code == 200
    assert len(inference.requests) == 1


async def test_what_waits_for_the_store_says_so_and_can_be_cancelled(
    start_backend: StartBackend, inference: InferenceDouble, settings: Settings
) -> None:
    storage = FailingStorage(settings)
    storage.is_away = True
    async with start_backend(storage=storage) as backend:
        asked = await backend.generate(expected=202, headers=ASYNC)
        assert (await seen_waiting(backend, asked["id"], "storage"))["status"] == "running"
        await backend.http.post(f"{CONTENT}/{asked['id']}/cancel")
        assert (await ended(backend, asked["id"]))["status"] == "cancelled"
        late = await backend.generate(headers={"Prefer": "wait=20"}, deadline_seconds=4)
        assert late["error"]["code"] == "STORAGE_FAILED"


async def test_what_was_used_is_charged_whatever_the_end(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.events = [QueuedEvent(position=0), ProgressEvent(phase=Phase.DENOISE, steps=20)]
    async with start_backend(daily_budget_usd=1e-4) as backend:
        inference.gate.clear()
        cancelled = await backend.generate(expected=202, headers=ASYNC)
        deleted = await backend.generate(expected=202, headers=ASYNC)
        while len(inference.requests) < 2:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        await backend.http.post(f"{CONTENT}/{cancelled['id']}/cancel")
        done = await ended(backend, cancelled["id"])
        assert done["status"] == "cancelled"
        assert 0.5 <= done["cost"]["seconds"] < 60
        assert done["cost"]["gpu"] == "L4"
        assert done["cost"]["usd"] > 0
        assert (await backend.http.delete(f"{CONTENT}/{deleted['id']}")).status_code == 204
        inference.gate.set()
        for _ in range(1000):
            async with backend.app.state.services.database.session() as session:
                charged = await session.scalar(text("SELECT sum(usd) FROM removed_cost"))
            if charged:
                break
            await asyncio.sleep(0.05)
        assert charged >= 0.5 * USD_PER_SECOND["L4"]
        refused = await backend.http.post(f"{CONTENT}/generate", json={"prompt": "x"})
        assert refused.status_code == 402
        summary = (await backend.http.get("/api/v1/costs/summary")).json()
        assert summary["total"]["actual_usd"] == pytest.approx(done["cost"]["usd"])


async def test_a_wait_in_the_workers_line_is_not_charged(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.events = [QueuedEvent(position=3)]
    inference.gate.clear()
    async with start_backend() as backend:
        asked = await backend.generate(expected=202, headers=ASYNC)
        while not inference.requests:
            await asyncio.sleep(0.02)
        await backend.http.post(f"{CONTENT}/{asked['id']}/cancel")
        assert (await ended(backend, asked["id"]))["cost"] is None
