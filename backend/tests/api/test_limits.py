"""Limits: calls a minute, contents at a time, money a day, bytes, other sites' pages, twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import URL, text

from app.core.db import Database
from app.core.security import key_digest, new_api_key
from app.core.settings import load_settings
from app.repositories.access.api_keys import ApiKeyRepository
from sdxl_contract.prices import USD_PER_SECOND
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble

ASYNC = {"Prefer": "respond-async"}
CONTENT = "/api/v1/content"
USUAL_USD = 10 * USD_PER_SECOND["L4"]


async def make_key(url: URL, owner: str = "local", **limits: Any) -> dict[str, str]:
    database = Database(url)
    key = new_api_key()
    async with database.session() as session:
        await ApiKeyRepository(session).add(key_digest(key), owner=owner, name="test", **limits)
    await database.close()
    return {"Authorization": f"Bearer {key}"}


def free_at(answer: Any) -> datetime:
    """When a refusal says that it will be free; checks that the header says the same."""
    moment = datetime.fromisoformat(answer.json()["details"]["free_at"])
    wait = (moment - datetime.now(UTC)).total_seconds()
    assert abs(wait - int(answer.headers["retry-after"])) <= 2
    return moment


async def test_a_key_makes_so_many_calls_a_minute_over_all_servers(
    start_backend: StartBackend, database_url: URL
) -> None:
    few = await make_key(database_url, requests_per_minute=3)
    other = await make_key(database_url)
    async with start_backend() as first, start_backend(inference=InferenceDouble()) as second:
        for server in (first, second, first):
            assert (await server.http.get(CONTENT, headers=few)).status_code == 200
        for server in (first, second):
            refused = await server.http.get(CONTENT, headers=few)
            assert (refused.status_code, refused.json()["error_code"]) == (429, "RATE_LIMITED")
            assert "3 calls a minute" in refused.json()["detail"]
            assert timedelta(0) < free_at(refused) - datetime.now(UTC) <= timedelta(seconds=21)
        assert (await first.http.get(CONTENT, headers=other)).status_code == 200
        async with first.app.state.services.database.session() as session:
            await session.execute(
                text("UPDATE call_rate SET free_at = free_at - interval '20 seconds'")
            )
        assert (await second.http.get(CONTENT, headers=few)).status_code == 200
        assert (await second.http.get(CONTENT, headers=few)).status_code == 429


async def test_the_settings_limit_holds_where_a_key_has_none(
    start_backend: StartBackend, database_url: URL
) -> None:
    async with start_backend(requests_per_minute=1) as backend:
        assert (await backend.http.get(CONTENT)).status_code == 200
        assert (await backend.http.get(CONTENT)).status_code == 429
        own = await make_key(database_url, requests_per_minute=2)
        statuses = [(await backend.http.get(CONTENT, headers=own)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


async def test_an_upload_counts_as_one_call(start_backend: StartBackend, database_url: URL) -> None:
    headers = await make_key(database_url, requests_per_minute=1)
    async with start_backend() as backend:
        place = "/api/v1/loras/models/upload"
        first = await backend.http.post(place, files={"file": b"x"}, headers=headers)
        assert first.status_code == 422
        second = await backend.http.post(place, files={"file": b"x"}, headers=headers)
        assert second.status_code == 429
        assert second.headers["content-type"] == "application/problem+json"


async def test_so_many_contents_wait_or_run_at_a_time(
    start_backend: StartBackend, inference: InferenceDouble, database_url: URL
) -> None:
    inference.gate.clear()
    async with start_backend(max_open_contents=3) as backend:
        answers = await asyncio.gather(
            *(
                backend.http.post(f"{CONTENT}/generate", json={"prompt": "x"}, headers=ASYNC)
                for _ in range(6)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 3
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error_code"] == "RATE_LIMITED"
        assert "At most 3 contents" in refused.json()["detail"]
        assert free_at(refused) > datetime.now(UTC)
        batch = await backend.http.post(f"{CONTENT}/batch", json={"prompts": ["a"]})
        assert batch.status_code == 429
        other = await make_key(database_url, owner="other")
        free = await backend.http.post(
            f"{CONTENT}/generate", json={"prompt": "x"}, headers=ASYNC | other
        )
        assert free.status_code == 202
        inference.gate.set()
    async with start_backend(max_open_contents=3) as backend:
        mine = await make_key(database_url)
        for _ in range(100):
            rows = (await backend.http.get(CONTENT, headers=mine)).json()["items"]
            if all(row["status"] == "succeeded" for row in rows):
                break
            await asyncio.sleep(0.1)
        assert len(rows) == 3
        await backend.generate(headers=mine)


async def test_a_batch_that_does_not_fit_is_refused_as_a_whole(
    start_backend: StartBackend,
) -> None:
    async with start_backend(max_open_contents=3) as backend:
        answer = await backend.http.post(f"{CONTENT}/batch", json={"prompts": ["a"], "count": 4})
        assert answer.status_code == 429
        assert (await backend.http.get(CONTENT)).json()["items"] == []


async def test_the_days_money_is_not_overdrawn(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    async with start_backend(daily_budget_usd=2.5 * USUAL_USD) as backend:
        first = await backend.generate()  # nothing was priced before: no estimate
        assert first["cost"]["usd"] == pytest.approx(USUAL_USD)
        inference.gate.clear()
        await backend.generate(expected=202, headers=ASYNC)  # reserved by its estimate
        for path, body in (("generate", {"prompt": "x"}), ("batch", {"prompts": ["x"]})):
            refused = await backend.http.post(f"{CONTENT}/{path}", json=body)
            assert refused.status_code == 402
            assert refused.json()["error_code"] == "BUDGET_EXHAUSTED"
            midnight = free_at(refused)
            assert (midnight.hour, midnight.minute) == (0, 0)
            assert timedelta(0) < midnight - datetime.now(UTC) <= timedelta(days=1)
        replay = await backend.http.post(f"{CONTENT}/{first['id']}/replay")
        assert replay.status_code == 402
        async with backend.app.state.services.database.session() as session:
            await session.execute(
                text("UPDATE generation SET created_at = created_at - interval '1 day'")
            )
        await backend.generate(expected=202, headers=ASYNC)
        inference.gate.set()


async def test_deleting_what_was_drawn_gives_no_money_back(start_backend: StartBackend) -> None:
    async with start_backend(daily_budget_usd=1.5 * USUAL_USD, metrics_refresh_seconds=0.1) as b:
        for _ in range(2):
            content = await b.generate()  # the first has no estimate
            assert (await b.http.delete(f"{CONTENT}/{content['id']}")).status_code == 204
        refused = await b.http.post(f"{CONTENT}/generate", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error_code"]) == (402, "BUDGET_EXHAUSTED")
        await asyncio.sleep(0.5)
        shown = (await b.http.get("/metrics")).text
        [today] = [line for line in shown.splitlines() if line.startswith("cost_today_usd ")]
        assert float(today.split()[1]) == pytest.approx(2 * USUAL_USD)


async def test_a_batch_with_the_same_idempotency_key_is_the_same_batch(backend: Backend) -> None:
    key = {"Idempotency-Key": "order 7"}
    body = {"prompts": ["a", "b"], "count": 3}
    answers = await asyncio.gather(
        *(backend.http.post(f"{CONTENT}/batch", json=body, headers=key) for _ in range(3))
    )
    assert [answer.status_code for answer in answers] == [202] * 3, answers[0].text
    assert len({answer.text for answer in answers}) == 1
    assert len(answers[0].json()["content_ids"]) == 6
    assert len((await backend.http.get(CONTENT)).json()["items"]) == 6
    other = await backend.http.post(f"{CONTENT}/batch", json={"prompts": ["c"]}, headers=key)
    assert (other.status_code, other.json()["field"]) == (409, "Idempotency-Key")
    wrong = await backend.http.post(
        f"{CONTENT}/batch", json=body, headers={"Idempotency-Key": "x" * 256}
    )
    assert (wrong.status_code, wrong.json()["field"]) == (422, "Idempotency-Key")


async def test_a_large_body_is_refused(start_backend: StartBackend) -> None:
    async with start_backend(max_request_bytes=1024) as backend:
        answer = await backend.http.post(f"{CONTENT}/generate", json={"prompt": "x" * 1024})
        assert (answer.status_code, answer.json()["error_code"]) == (413, "TOO_LARGE")
        assert "at most 1024 bytes" in answer.json()["detail"]
        await backend.generate(prompt="x" * 900)


async def test_other_origins_are_answered_only_where_named(start_backend: StartBackend) -> None:
    origin = {"Origin": "http://localhost:5173"}
    ask = origin | {"Access-Control-Request-Method": "POST"}
    async with start_backend() as backend:
        answer = await backend.http.get(CONTENT, headers=origin)
        assert "access-control-allow-origin" not in answer.headers
        assert (await backend.http.options(CONTENT, headers=ask)).status_code == 405
    async with start_backend(cors_origins=" http://localhost:5173 ,https://a.example") as backend:
        answer = await backend.http.options(CONTENT, headers=ask)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        assert "access-control-allow-credentials" not in answer.headers
        other = await backend.http.get(CONTENT, headers={"Origin": "http://localhost:9"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("value", ["*", "studio.example", "https://a.example/path", "null"])
def test_an_origin_must_be_one(value: str) -> None:
    with pytest.raises(ValidationError, match="origins like"):
        load_settings(cors_origins=value)
