"""Owners take turns at the worker; each one's contents come in the order of their asking."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import URL, text

from app.repositories.attempts import AttemptRepository
from app.repositories.events import EventRepository
from testkit.backend import CONTENT, Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

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


async def ask_for(backend: Backend, key: dict[str, str], name: str, lora: str | None) -> None:
    loras = [] if lora is None else [{"lora_model_id": lora}]
    await backend.generate(expected=202, headers=key | ASYNC, prompt=name, loras=loras)


async def drawn_in_order(
    backend: Backend, inference: InferenceDouble, key: dict[str, str], names: str
) -> str:
    """How `names` are drawn; each letter stands for a LoRA, `-` for none."""
    loras: dict[str, str | None] = {"-": None}
    for letter in sorted({*names} - {"-"}):
        data = kohya_lora(seed=ord(letter))
        answer = await backend.http.post(
            "/api/v1/loras/models/upload",
            files={"file": ("lora.safetensors", data, "application/octet-stream")},
            data={"name": letter},
            headers=key,
        )
        assert answer.status_code == 201, answer.text
        loras[letter] = answer.json()["id"]
    inference.gate.clear()
    for letter in names:
        await ask_for(backend, key, letter, loras[letter])
    while not inference.requests:
        await asyncio.sleep(0.02)
    inference.gate.set()
    await all_ended(backend)
    return "".join(request.prompt[0] for request in inference.requests)


@pytest.mark.parametrize(
    ("places", "asked", "drawn"),
    [
        (1, "abababc", "abababc"),  # the order of asking
        (3, "abababc", "aabbbac"),  # the third `a` is too far from the `b` that waits
        (4, "abababc", "aaabbbc"),
        (4, "a-a-a-", "aaa---"),  # without LoRAs there is nothing to share
        (4, "abcdea", "abcdea"),  # as far as four places, and no farther
        (5, "abcdea", "aabcde"),
    ],
)
async def test_contents_for_the_same_loras_go_together_within_some_places(
    start_backend: StartBackend,
    inference: InferenceDouble,
    database_url: URL,
    places: int,
    asked: str,
    drawn: str,
) -> None:
    key = await add_key(database_url, "one")
    async with start_backend(job_concurrency=1, same_lora_places=places) as backend:
        found = await drawn_in_order(backend, inference, key, asked)

    assert found == drawn
    for letter in asked:
        # Nobody waits for more than `places` - 1 that were asked for after it.
        for number in range(asked.count(letter)):
            was, now = _place(asked, letter, number), _place(found, letter, number)
            assert now - was <= places - 1


def _place(names: str, letter: str, number: int) -> int:
    return [place for place, one in enumerate(names) if one == letter][number]


async def test_owners_take_turns_as_before_where_loras_go_together(
    start_backend: StartBackend, inference: InferenceDouble, database_url: URL
) -> None:
    one, other = [await add_key(database_url, name) for name in ("one", "other")]
    async with start_backend(job_concurrency=1) as backend:
        inference.gate.clear()
        ids = {}
        for key, owner in ((one, "1"), (other, "2")):
            for letter in "ab":
                answer = await backend.http.post(
                    "/api/v1/loras/models/upload",
                    files={"file": ("l.safetensors", kohya_lora(seed=ord(letter)))},
                    data={"name": letter},
                    headers=key,
                )
                ids[owner + letter] = answer.json()["id"]
        for key, owner in ((one, "1"), (other, "2")):
            for letter in "abab":
                await ask_for(backend, key, owner + letter, ids[owner + letter])
            while not inference.requests:
                await asyncio.sleep(0.02)
        inference.gate.set()
        await all_ended(backend)
    drawn = [request.prompt for request in inference.requests]

    assert drawn == ["1a", "2a", "1a", "2a", "1b", "2b", "1b", "2b"]
