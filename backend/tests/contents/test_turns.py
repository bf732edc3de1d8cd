"""Owners take turns at the worker; each one's contents come in the order of their asking."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from sqlalchemy import URL, text

from app.repositories.attempts import AttemptRepository
from app.repositories.events import EventRepository
from testkit.backend import CONTENT, Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble

ASYNC = {"Prefer": "respond-async"}


async def ask(backend: Backend, key: dict[str, str], count: int, name: str, **body: Any) -> None:
    answer = await backend.http.post(
        f"{CONTENT}/batch",
        json={"prompts": [f"{name}{number}" for number in range(count)]} | body,
        headers=key,
    )
    assert answer.status_code == 202, answer.text


async def all_ended(backend: Backend) -> None:
    async with asyncio.timeout(30):
        while True:
            async with backend.app.state.services.database.session() as session:
                left = await session.scalar(
                    text("SELECT count(*) FROM generation WHERE finished_at IS NULL")
                )
            if not left:
                return
            await asyncio.sleep(0.05)


async def test_ones_picture_does_not_wait_for_all_of_anothers(
    start_backend: StartBackend, inference: InferenceDouble, database_url: URL
) -> None:
    many, few = [await add_key(database_url, owner) for owner in ("many", "few")]
    inference.gate.clear()
    async with start_backend(job_concurrency=1) as backend:
        await ask(backend, many, 8, "m")
        while not inference.requests:
            await asyncio.sleep(0.02)
        await ask(backend, few, 2, "f")
        waiting = await backend.generate(expected=202, headers=few | ASYNC, prompt="last")
        place = await place_of(backend, waiting["id"])
        assert place == 2 + 3  # two of its own, and three turns of the other
        inference.gate.set()
        await all_ended(backend)
    drawn = [request.prompt for request in inference.requests]
    assert drawn == ["m0", "f0", "m1", "f1", "m2", "last", "m3", "m4", "m5", "m6", "m7"]


async def place_of(backend: Backend, content_id: str) -> int:
    async with backend.app.state.services.database.direct() as connection:
        return (await EventRepository(connection).place(uuid.UUID(content_id))).position


async def test_turns_are_counted_in_pictures_and_weighted(
    start_backend: StartBackend, inference: InferenceDouble, database_url: URL
) -> None:
    large, small, heavy = [await add_key(database_url, name) for name in ("l", "s", "w")]
    inference.gate.clear()
    async with start_backend(job_concurrency=1) as backend:
        async with backend.app.state.services.database.session() as session:
            await session.execute(text("INSERT INTO queue_turn (owner, weight) VALUES ('w', 2)"))
        await ask(backend, small, 1, "first")
        while not inference.requests:
            await asyncio.sleep(0.02)
        await ask(backend, large, 2, "l", num_images=4)
        await ask(backend, small, 6, "s")
        await ask(backend, heavy, 8, "w")
        inference.gate.set()
        await all_ended(backend)
    drawn = [request.prompt[0] for request in inference.requests][1:]
    # Until the one of four pictures is next again: four of `s`, and eight of `w`, of weight 2.
    until = drawn[: drawn.index("l", drawn.index("l") + 1)]
    assert (until.count("s"), until.count("w")) in {(4, 8), (3, 8), (4, 7), (5, 8), (3, 7)}


async def test_who_was_away_gets_no_turns_in_arrears(
    start_backend: StartBackend, inference: InferenceDouble, database_url: URL
) -> None:
    steady, back = [await add_key(database_url, owner) for owner in ("steady", "back")]
    async with start_backend(job_concurrency=1) as backend:
        await ask(backend, steady, 6, "s")
        await all_ended(backend)
        inference.gate.clear()
        await ask(backend, steady, 5, "s")
        while len(inference.requests) < 7:
            await asyncio.sleep(0.02)
        await ask(backend, back, 4, "b")
        inference.gate.set()
        await all_ended(backend)
    drawn = "".join(request.prompt[0] for request in inference.requests[6:])
    assert drawn == "sbsbsbsbs"


async def test_a_ticket_whose_content_was_cancelled_keeps_nobody_waiting(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    async with start_backend(job_concurrency=1) as backend:
        contents = [
            await backend.generate(expected=202, headers=ASYNC, prompt=f"p{number}")
            for number in range(4)
        ]
        while not inference.requests:
            await asyncio.sleep(0.02)
        await backend.http.post(f"{CONTENT}/{contents[1]['id']}/cancel")
        inference.gate.set()
        for content in (contents[0], contents[2], contents[3]):
            assert (await ended(backend, content["id"]))["status"] == "succeeded"
    assert [request.prompt for request in inference.requests] == ["p0", "p2", "p3"]


async def test_every_open_content_has_a_ticket_however_they_were_swapped(
    start_backend: StartBackend, inference: InferenceDouble, database_url: URL
) -> None:
    keys = [await add_key(database_url, owner) for owner in ("a", "b", "c")]
    inference.gate.clear()
    async with start_backend(job_concurrency=2) as backend:
        for number, key in enumerate(keys):
            await ask(backend, key, 4, f"{number}-")
        while len(inference.requests) < 2:
            await asyncio.sleep(0.02)
        async with backend.app.state.services.database.session() as session:
            rows = await session.execute(
                text(
                    "SELECT g.id::text, j.args ->> 'content_id' FROM generation g "
                    "JOIN procrastinate_jobs j ON j.id = g.job_id"
                )
            )
            pairs = [tuple(row) for row in rows]
        assert len(pairs) == len(set(pairs)) == 12
        # An older version goes by the id in its ticket: it has to be the content's own.
        assert all(content == named for content, named in pairs)
        async with backend.app.state.services.database.direct() as connection:
            assert await AttemptRepository(connection).orphans() == []
        inference.gate.set()
        await all_ended(backend)
    assert len({request.request_id for request in inference.requests}) == 12
