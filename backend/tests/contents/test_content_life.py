"""Cancelling, repeating, asking for many, and watching live."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from sqlalchemy import URL

from app.repositories.attempts import AttemptRepository, Claimed
from app.repositories.events import EventRepository
from app.services.contents import dispatch as drawing
from app.services.modal_sdxl_lora_client import BuildRequest, InferenceOutcome
from sdxl_contract.result import Phase, PreviewEvent, ProgressEvent
from testkit.backend import Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

ASYNC = {"Prefer": "respond-async"}
CONTENT = "/api/v1/content"


async def begun(inference: InferenceDouble) -> None:
    """Return when the double has been asked."""
    while not inference.requests:
        await asyncio.sleep(0.02)


def read_stream(text: str) -> list[tuple[str | None, str, dict[str, Any]]]:
    """(id, type, data) of each event."""
    events = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":"
        )
        if "data" in fields:
            events.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return events


async def test_a_waiting_content_is_cancelled_at_once(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    async with start_backend(job_concurrency=1) as backend:
        first = await backend.generate(expected=202, headers=ASYNC)
        await begun(inference)
        second = await backend.generate(expected=202, headers=ASYNC)
        answer = await backend.http.post(f"{CONTENT}/{second['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        again = await backend.http.post(f"{CONTENT}/{second['id']}/cancel")
        assert again.status_code == 202
        inference.gate.set()
        assert (await ended(backend, first["id"]))["status"] == "succeeded"
        assert (await ended(backend, second["id"]))["status"] == "cancelled"
        assert (await backend.generate())["status"] == "succeeded"
    assert len(inference.requests) == 2


@pytest.mark.parametrize("worker_knows", [True, False])
async def test_a_content_that_is_being_drawn_is_stopped_whichever_server_draws_it(
    start_backend: StartBackend, inference: InferenceDouble, worker_knows: bool
) -> None:
    inference.gate.clear()
    other = InferenceDouble()
    async with start_backend() as drawer:
        content = await drawer.generate(expected=202, headers=ASYNC)
        await begun(inference)
        async with start_backend(inference=other) as asker:
            if not worker_knows:
                inference.cancel = other.cancel  # type: ignore[method-assign]
            answer = await asker.http.post(f"{CONTENT}/{content['id']}/cancel")
            assert answer.status_code == 202
            done = await ended(asker, content["id"])
        assert done["status"] == "cancelled"
        assert done["error"]["code"] == "CANCELLED"
        assert inference.cancelled == ([content["id"]] if worker_knows else [])
        inference.gate.set()
        assert (await drawer.generate())["status"] == "succeeded"


async def test_a_stop_whose_announcement_was_lost_is_seen_at_the_next_progress(
    start_backend: StartBackend, inference: InferenceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(self: EventRepository, content_id: uuid.UUID) -> None:
        return None

    async def draw_for_ever(build: BuildRequest, **called: Any) -> InferenceOutcome:
        inference.requests.append(await build())
        while True:
            await called["on_event"](ProgressEvent(phase=Phase.DENOISE, step=1, steps=20))
            await asyncio.sleep(0.05)

    monkeypatch.setattr(EventRepository, "ask_to_stop", lost)
    inference.generate = draw_for_ever  # type: ignore[assignment, method-assign]
    async with start_backend() as backend:
        content = await backend.generate(expected=202, headers=ASYNC)
        await begun(inference)
        answer = await backend.http.post(f"{CONTENT}/{content['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "running")
        assert (await ended(backend, content["id"]))["status"] == "cancelled"
    assert inference.cancelled == [content["id"]]


async def test_a_stop_between_the_claim_and_the_call_to_the_worker_is_not_missed(
    start_backend: StartBackend, inference: InferenceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = AttemptRepository.claim
    async with start_backend() as backend:

        async def claim_then_cancel(
            self: AttemptRepository, job_id: int, together: int
        ) -> Claimed | None:
            claimed = await claim(self, job_id, together)
            if claimed is None:
                return None
            answer = await backend.http.post(f"{CONTENT}/{claimed.content.id}/cancel")
            assert answer.json()["status"] == "running"
            await asyncio.sleep(0.5)  # its announcement arrives
            return claimed

        monkeypatch.setattr(AttemptRepository, "claim", claim_then_cancel)
        content = await backend.generate(expected=202, headers=ASYNC)
        assert (await ended(backend, content["id"]))["status"] == "cancelled"
    assert inference.requests == []


async def test_what_has_ended_cannot_be_cancelled(backend: Backend) -> None:
    content = await backend.generate()
    answer = await backend.http.post(f"{CONTENT}/{content['id']}/cancel")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "CONFLICT")


async def test_a_replay_draws_the_same_picture_as_a_new_content(backend: Backend) -> None:
    lora = await backend.upload(kohya_lora())
    first = await backend.generate(loras=[{"lora_model_id": lora["id"], "scale": 0.7}])
    answer = await backend.http.post(f"{CONTENT}/{first['id']}/replay")
    assert answer.status_code == 202
    assert answer.headers["location"] == f"{CONTENT}/{answer.json()['id']}"
    again = await ended(backend, answer.json()["id"])
    assert again["id"] != first["id"]
    assert again["parameters"] == first["parameters"]
    assert again["images"][0]["sha256"] == first["images"][0]["sha256"]
    assert (await backend.http.delete(f"/api/v1/loras/models/{lora['id']}")).status_code == 204
    gone = await backend.http.post(f"{CONTENT}/{first['id']}/replay")
    assert (gone.status_code, "was deleted" in gone.json()["detail"]) == (409, True)


async def test_a_batch_draws_each_prompt_as_often_as_asked(
    backend: Backend, inference: InferenceDouble
) -> None:
    answer = await backend.http.post(
        f"{CONTENT}/batch", json={"prompts": ["a cat", "a dog"], "count": 2, "seed": 2**32 - 1}
    )
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert len(batch["content_ids"]) == 4
    done = [await ended(backend, content_id) for content_id in batch["content_ids"]]
    assert [content["prompt"] for content in done] == ["a cat", "a cat", "a dog", "a dog"]
    assert [content["parameters"]["seed"] for content in done] == [2**32 - 1, 0, 1, 2]
    counts = (await backend.http.get(answer.headers["location"])).json()
    assert (counts["total"], counts["succeeded"], counts["queued"]) == (4, 4, 0)
    await backend.generate()
    listed = await backend.http.get(CONTENT, params={"batch_id": batch["batch_id"]})
    assert {item["id"] for item in listed.json()["items"]} == set(batch["content_ids"])


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"prompts": []}, 422, "prompts"),
        ({"prompts": ["a", " "]}, 400, "prompts[1]"),
        ({"prompts": ["a"], "count": 0}, 422, "count"),
        ({"prompts": ["a"] * 100, "count": 6}, 422, "count"),
        ({"prompts": ["a"], "width": 700}, 422, "width"),
        ({"prompts": ["a"], "steps": 0}, 422, "steps"),
        ({"prompts": ["a"], "avatar_id": str(uuid.UUID(int=0))}, 404, "avatar_id"),
    ],
)
async def test_a_wrong_batch_is_refused_as_a_whole(
    backend: Backend, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await backend.http.post(f"{CONTENT}/batch", json=body)
    assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text
    assert (await backend.http.get(CONTENT)).json()["items"] == []


async def test_events_tell_a_content_s_life_and_resume(
    start_backend: StartBackend, inference: InferenceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_PROGRESS_SECONDS", 0.0)
    inference.events = [
        ProgressEvent(phase=Phase.DENOISE, step=5, steps=20, eta_seconds=3.0),
        PreviewEvent(image_base64="AAAA", step=5),
    ]
    inference.gate.clear()
    async with start_backend(job_concurrency=1) as backend:
        first = await backend.generate(expected=202, headers=ASYNC)
        await begun(inference)
        second = await backend.generate(expected=202, headers=ASYNC)
        watchers = [
            asyncio.create_task(backend.http.get(f"{CONTENT}/{content['id']}/events"))
            for content in (first, second)
        ]
        await asyncio.sleep(0.5)
        inference.gate.set()
        answers = [await watcher for watcher in watchers]
        assert answers[0].headers["content-type"].startswith("text/event-stream")
        one, two = (read_stream(answer.text) for answer in answers)
        kinds = ["queued", "started", "progress", "preview", "succeeded"]
        assert [kind for _, kind, _ in one] == kinds
        assert one[2][2] == {"phase": "denoise", "step": 5, "steps": 20, "eta_seconds": 3.0}
        assert one[3][2]["image"] == "data:image/jpeg;base64,AAAA"
        assert two[0][1:] == ("queued", {"position": 0, "waiting_for": None})
        content = one[-1][2]["content"]
        assert (await backend.http.get(content["image_url"])).status_code == 200
        place = f"{CONTENT}/{first['id']}/events"
        resumed = await backend.http.get(place, headers={"Last-Event-ID": str(one[1][0])})
        assert [kind for _, kind, _ in read_stream(resumed.text)] == ["succeeded"]
        after_end = await backend.http.get(place, headers={"Last-Event-ID": str(one[-1][0])})
        assert [kind for _, kind, _ in read_stream(after_end.text)] == ["succeeded"]


@pytest.mark.parametrize("number", ["9" * 18, "9" * 30, "-1", "garbage", "1e3"])
async def test_a_number_that_no_event_has_tells_everything(
    start_backend: StartBackend, inference: InferenceDouble, number: str
) -> None:
    inference.gate.clear()
    async with start_backend() as backend:
        content = await backend.generate(expected=202, headers=ASYNC)
        await begun(inference)
        watching = asyncio.create_task(
            backend.http.get(f"{CONTENT}/{content['id']}/events", headers={"Last-Event-ID": number})
        )
        await asyncio.sleep(0.3)
        inference.gate.set()
        events = read_stream((await watching).text)
    assert [kind for _, kind, _ in events] == ["queued", "started", "succeeded"]


async def test_batches_are_listed_page_by_page_newest_first(
    backend: Backend, database_url: URL
) -> None:
    made = []
    for prompts in (["a"], ["b", "c"], ["d"]):
        answer = await backend.http.post(f"{CONTENT}/batch", json={"prompts": prompts})
        for content_id in answer.json()["content_ids"]:
            await ended(backend, content_id)
        made.append(answer.json()["batch_id"])
    first = (await backend.http.get(f"{CONTENT}/batch", params={"limit": 2})).json()
    assert [item["batch_id"] for item in first["items"]] == made[:0:-1]
    assert [(item["total"], item["succeeded"]) for item in first["items"]] == [(1, 1), (2, 2)]
    cursor = first["next_cursor"]
    second = (await backend.http.get(f"{CONTENT}/batch", params={"cursor": cursor})).json()
    assert [item["batch_id"] for item in second["items"]] == made[:1]
    assert second["next_cursor"] is None
    one = (await backend.http.get(f"{CONTENT}/batch/{made[1]}")).json()
    assert one == first["items"][1]
    wrong = await backend.http.get(f"{CONTENT}/batch", params={"cursor": "YQ"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "cursor")
    other = await add_key(database_url, "other")
    assert (await backend.http.get(f"{CONTENT}/batch", headers=other)).json()["items"] == []
    mine = await add_key(database_url, "local")
    assert len((await backend.http.get(f"{CONTENT}/batch", headers=mine)).json()["items"]) == 3


async def test_events_end_with_the_reason_of_a_failure(
    backend: Backend, inference: InferenceDouble
) -> None:
    inference.failures.append(RuntimeError("secret"))
    content = await backend.generate()
    events = read_stream((await backend.http.get(f"{CONTENT}/{content['id']}/events")).text)
    assert [kind for _, kind, _ in events] == ["queued", "started", "failed"]
    assert events[-1][2]["error"]["code"] == "GENERATION_FAILED"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "{}/cancel"), ("POST", "{}/replay"), ("GET", "{}/events"), ("GET", "batch/{}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["nonsense", str(uuid.UUID(int=7))])
async def test_nothing_is_done_to_an_unknown_id(
    backend: Backend, method: str, path: str, name: str
) -> None:
    answer = await backend.http.request(method, f"{CONTENT}/{path.format(name)}")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "NOT_FOUND")
