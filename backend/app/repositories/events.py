"""SQL of what happens to contents, and its announcement to every server on the database.

A passing event (progress, preview) is kept only while its content is being drawn.
"""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from app.core.db import DriverConnection, fetch_rows, fetch_value
from app.models import Status

CHANNEL = "content_events"
STOP = "stop:"
END = "end:"
PASSING = ("progress", "preview")

# Event and announcement in one message to the database.
_ADD_END = f"""
    WITH gone AS (
        DELETE FROM generation_event
        WHERE generation_id = %(content_id)s AND type IN {PASSING}
    ), added AS (
        INSERT INTO generation_event (generation_id, type, data)
        VALUES (%(content_id)s, %(kind)s, '{{}}')
    )
    SELECT pg_notify('{CHANNEL}', %(message)s)
"""
_ADD_PASSING = f"""
    WITH held AS (
        SELECT id, cancel_requested_at IS NOT NULL AS is_unwanted FROM generation
        WHERE id = %(content_id)s AND attempt = %(attempt)s AND status = '{Status.RUNNING}'
    ), added AS (
        INSERT INTO generation_event (generation_id, type, data)
        SELECT id, %(kind)s, %(data)s FROM held
    )
    SELECT is_unwanted, pg_notify('{CHANNEL}', id::text) FROM held
"""
_AFTER = """
    SELECT id, type, data FROM generation_event
    WHERE generation_id = %(content_id)s AND id > %(event_id)s ORDER BY id
"""
# Owners take turns: before an owner's n-th content about n of each other one's come.
_PLACE = f"""
    WITH mine AS (
        SELECT id, owner, created_at, waiting_for, retry_at FROM generation
        WHERE id = %(content_id)s
    ), own AS (
        SELECT count(*) AS before FROM generation g JOIN mine ON g.owner = mine.owner
        WHERE (g.created_at, g.id) < (mine.created_at, mine.id)
        AND g.status = '{Status.QUEUED}' AND g.finished_at IS NULL
    ), paused AS (
        SELECT owner FROM queue_turn WHERE paused_at IS NOT NULL
    ), others AS (
        SELECT count(*) AS waiting FROM generation g JOIN mine ON g.owner <> mine.owner
        WHERE g.status = '{Status.QUEUED}' AND g.finished_at IS NULL
        AND g.owner NOT IN (SELECT owner FROM paused) GROUP BY g.owner
    )
    SELECT own.before + coalesce(
            (SELECT sum(least(waiting, own.before + 1)) FROM others), 0
        )::bigint AS position,
        CASE WHEN mine.retry_at > clock_timestamp() OR mine.owner IN (SELECT owner FROM paused)
            THEN mine.waiting_for END AS waiting_for
    FROM own, mine
"""


class EventRow(NamedTuple):
    """What happened; numbers of one content grow."""

    id: int
    type: str
    data: dict[str, Any]


class Place(NamedTuple):
    """How many contents come before one, about, and what it waits for itself; 0 is next."""

    position: int
    waiting_for: dict[str, str] | None


class EventRepository:
    """Events by content; announcements are sent when the transaction commits."""

    def __init__(self, connection: DriverConnection) -> None:
        self._connection = connection

    async def add_end(self, content_id: uuid.UUID, status: Status) -> None:
        """Write that a content has ended without having been drawn."""
        values = {
            "content_id": content_id,
            "kind": status.value,
            "message": f"{END}{content_id}",
        }
        await self._connection.execute(_ADD_END.encode(), values)

    async def add_passing(
        self, content_id: uuid.UUID, attempt: int, kind: str, data: dict[str, Any]
    ) -> bool:
        """Write an event of a running attempt; nothing where another one holds the content.

        Returns whether somebody asked to stop the content, which the announcement of it may not
        have reached.
        """
        values = {"content_id": content_id, "attempt": attempt, "kind": kind, "data": Jsonb(data)}
        return bool(await fetch_value(self._connection, _ADD_PASSING, values))

    async def ask_to_stop(self, content_id: uuid.UUID) -> None:
        """Tell whoever draws a content to stop."""
        query = f"SELECT pg_notify('{CHANNEL}', %(message)s)"
        await self._connection.execute(query.encode(), {"message": f"{STOP}{content_id}"})

    async def after(self, content_id: uuid.UUID, event_id: int) -> list[EventRow]:
        """The events of a content that came after one, in order."""
        values = {"content_id": content_id, "event_id": event_id}
        return [EventRow(**row) for row in await fetch_rows(self._connection, _AFTER, values)]

    async def newest(self, content_id: uuid.UUID) -> int:
        """The number of a content's last event; 0 where it has none."""
        query = "SELECT max(id) FROM generation_event WHERE generation_id = %(content_id)s"
        return await fetch_value(self._connection, query, {"content_id": content_id}) or 0

    async def place(self, content_id: uuid.UUID) -> Place:
        """Where a content is in line."""
        rows = await fetch_rows(self._connection, _PLACE, {"content_id": content_id})
        return Place(**rows[0]) if rows else Place(0, None)
