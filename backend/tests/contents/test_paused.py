"""A queue that its owner paused: nothing more is begun, nothing is lost, and others go on."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from sqlalchemy import URL

from testkit.backend import Backend, StartBackend, add_key
from testkit.doubles.inference_double import InferenceDouble

ASYNC = {"Prefer": "respond-async"}
QUEUE = "/api/v1/queue"


async def queue(backend: Backend, key: dict[str, str], to: str | None = None) -> Any:
    path = QUEUE if to is None else f"{QUEUE}/{to}"
    answer = await backend.http.request("GET" if to is None else "POST", path, headers=key)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until_drawn(inference: InferenceDouble, count: int) -> None:
    async with asyncio.timeout(20):
        while len(inference.requests) < count:
            await asyncio.sleep(0.02)


async def test_a_paused_queue_waits_through_a_restart_while_others_go_on(
    start_backend: StartBackend, inference: InferenceDouble, database_url: URL
) -> None:
    pauses, other = [await add_key(database_url, owner) for owner in ("pauses", "other")]
    inference.gate.clear()
    async with start_backend(job_concurrency=1) as backend:
        await backend.generate(expected=202, headers=pauses | ASYNC, prompt="runs")
        await until_drawn(inference, 1)
        waits = await backend.generate(expected=202, headers=pauses | ASYNC, prompt="waits")
        paused = await queue(backend, pauses, "pause")
        again = await queue(backend, pauses, "pause")
        later = await backend.generate(expected=202, headers=pauses | ASYNC, prompt="later")
        inference.gate.set()
        await backend.generate(expected=200, headers=other, prompt="another's")
        for content in (waits, later):
            read = await backend.http.get(f"/api/v1/content/{content['id']}", headers=pauses)
            assert read.json()["status"] == "queued"
            assert read.json()["waiting_for"]["reason"] == "queue_paused"
        assert paused["queued"] == 1
        assert paused["running"] == 1
        assert paused["paused_at"] == again["paused_at"] is not None
        assert (await queue(backend, other))["paused_at"] is None
    async with start_backend(job_concurrency=1) as backend:
        await backend.generate(expected=200, headers=other, prompt="after the restart")
        now = await queue(backend, pauses)
        assert (now["paused_at"], now["queued"]) == (paused["paused_at"], 2)
        drawn = [request.prompt for request in inference.requests]
        assert drawn == ["runs", "another's", "after the restart"]
        assert (await queue(backend, pauses, "resume"))["paused_at"] is None
        await until_drawn(inference, 5)
        assert [request.prompt for request in inference.requests][3:] == ["waits", "later"]


async def test_a_waiting_content_tells_that_it_is_paused_and_that_it_goes_on(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    async with start_backend(job_concurrency=1) as backend:
        await queue(backend, {}, "pause")
        content = await backend.generate(expected=202, headers=ASYNC, prompt="told")
        told = []
        follow = backend.app.state.services.events.follow(uuid.UUID(content["id"]))
        async with asyncio.timeout(20):
            async for event in follow:
                reason = (event.data.get("waiting_for") or {}).get("reason")
                told.append(reason or event.type)
                if told == ["queue_paused"]:
                    await queue(backend, {}, "resume")
    assert told[0] == "queue_paused"
    assert told[-1] == "succeeded"
    assert "queue_paused" not in told[1:]


async def test_the_queue_is_paused_only_by_its_owner(
    start_backend: StartBackend, database_url: URL
) -> None:
    await add_key(database_url, "someone")
    async with start_backend() as backend:
        for path in (QUEUE, f"{QUEUE}/pause", f"{QUEUE}/resume"):
            method = "GET" if path == QUEUE else "POST"
            assert (await backend.http.request(method, path)).status_code == 401
