"""What is read by several statements is of one moment, although others write between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from app.core.db import Database
from testkit.backend import Backend

StartBackend = Callable[..., AbstractAsyncContextManager[Backend]]


def write_after(database: Database, begins: str, table: str, statement: str) -> None:
    """Have `statement` written by somebody else right after the next one that reads `table`."""
    engine = database.engine.sync_engine
    left = [statement]

    @event.listens_for(engine, "after_cursor_execute")
    def written(_: Any, __: Any, read: str, *___: Any) -> None:
        if left and read.startswith(begins) and table in read:
            with psycopg.connect(database.conninfo, autocommit=True) as other:
                assert other.execute(left.pop().encode()).rowcount > 0


async def test_a_list_holds_no_picture_of_what_it_says_is_still_drawn(
    start_backend: StartBackend,
) -> None:
    async with start_backend() as backend:
        made = await backend.generate()
        database = backend.app.state.services.database
        write_after(database, "SELECT", "FROM generation", "DELETE FROM content_piece")
        [found] = (await backend.http.get("/api/v1/content")).json()["items"]
        again = await backend.http.get(f"/api/v1/content/{made['id']}")

    assert [image["id"] for image in found["images"]] == [made["images"][0]["id"]]
    assert again.json()["images"] == [], "the control: somebody did write meanwhile"


async def test_the_parts_of_a_cost_are_those_of_its_total(start_backend: StartBackend) -> None:
    async with start_backend(worker_usd_per_hour=3600.0) as backend:
        await backend.generate()
        database = backend.app.state.services.database
        raised = "UPDATE generation SET cost_usd = coalesce(cost_usd, 0) + 1"
        write_after(database, "SELECT", "FROM generation", raised)
        costs = (await backend.http.get("/api/v1/costs/summary")).json()
        later = (await backend.http.get("/api/v1/costs/summary")).json()

    assert sum(day["actual_usd"] for day in costs["by_day"]) == costs["total"]["actual_usd"]
    assert later["total"]["actual_usd"] == pytest.approx(costs["total"]["actual_usd"] + 1)


async def test_a_message_s_state_is_that_after_its_last_attempt(
    start_backend: StartBackend,
) -> None:
    async with start_backend(webhook_allow_loopback=True) as backend:
        made = await backend.http.post(
            "/api/v1/webhooks",
            json={"url": "http://127.0.0.1:9/none", "events": ["content.succeeded"]},
        )
        hook = f"/api/v1/webhooks/{made.json()['id']}"
        sent = (await backend.http.post(f"{hook}/test")).json()
        place = f"{hook}/deliveries/{sent['id']}"
        database = backend.app.state.services.database
        before = (await backend.http.get(place)).json()
        noted = (
            "INSERT INTO webhook_attempt (delivery_id, attempt, milliseconds, created_at) "
            "SELECT id, 7, 1, now() FROM webhook_delivery"
        )
        write_after(database, "SELECT", "FROM webhook_delivery", noted)
        during = (await backend.http.get(place)).json()
        after = (await backend.http.get(place)).json()

    assert 7 not in [attempt["attempt"] for attempt in during["log"]], before
    assert 7 in [attempt["attempt"] for attempt in after["log"]]
