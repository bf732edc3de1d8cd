"""SQL of a job's life: what runners do to contents, whoever owns them. Each step is one statement.

An end is fenced by the attempt: who does not hold the newest one changes nothing. A step that
people may hear of writes its event and announces it in the same statement.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from app.core.db import DriverConnection, fetch_rows, fetch_value
from app.models import Content, Image, Status
from app.models.base import utc_now
from app.repositories.columns import GENERATION, PIECE, as_values, listed, typed
from app.repositories.contents import as_generation
from app.repositories.events import CHANNEL, END, PASSING

_OPEN = (Status.QUEUED.value, Status.RUNNING.value)
_CLAIM = f"""
    WITH held AS (
        UPDATE generation SET
            status = '{Status.RUNNING}', attempt = attempt + 1,
            started_at = coalesce(started_at, %(now)s)
        WHERE id = %(content_id)s AND status IN {_OPEN}
        RETURNING {listed(GENERATION)}
    ), added AS (
        INSERT INTO generation_event (generation_id, type, data)
        SELECT id, 'started', jsonb_build_object('attempt', attempt) FROM held
    )
    SELECT held.*, pg_notify('{CHANNEL}', id::text) AS told FROM held
"""
# Skips what another runner is just taking up.
_ORPHANS = f"""
    SELECT id FROM generation g WHERE status IN {_OPEN} AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs j
        WHERE j.id = g.job_id AND j.status IN ('todo', 'doing')
    )
    ORDER BY created_at FOR UPDATE SKIP LOCKED
"""


class AttemptRepository:
    """Steps of jobs."""

    # What must be true of a row for an attempt's end to be written.
    fence = f"attempt = %(attempt)s AND status = '{Status.RUNNING}'"

    def __init__(self, connection: DriverConnection) -> None:
        self._connection = connection

    async def status(self, content_id: uuid.UUID) -> Status | None:
        """Where a content is; None where it is gone."""
        query = "SELECT status FROM generation WHERE id = %(content_id)s"
        found = await fetch_value(self._connection, query, {"content_id": content_id})
        return None if found is None else Status(found)

    async def wants_stop(self, content_id: uuid.UUID) -> bool:
        """Whether somebody asked to cancel a content."""
        query = "SELECT cancel_requested_at IS NOT NULL FROM generation WHERE id = %(content_id)s"
        return bool(await fetch_value(self._connection, query, {"content_id": content_id}))

    async def claim(self, content_id: uuid.UUID) -> Content | None:
        """Begin a new attempt; None where there is nothing left to do.

        Taking up a `running` content is right: its last runner is held for dead, and if it wakes,
        the grown attempt keeps it from writing.
        """
        rows = await fetch_rows(
            self._connection, _CLAIM, {"content_id": content_id, "now": utc_now()}
        )
        return as_generation(rows[0], []) if rows else None

    async def finish(
        self,
        content_id: uuid.UUID,
        attempt: int,
        values: Mapping[str, Any],
        images: Sequence[Image] = (),
    ) -> bool:
        """Write a final state, its pictures and its event. False: another attempt holds it."""
        rows = await fetch_rows(
            self._connection,
            _finish(self.fence, tuple(values)),
            {
                **as_values(Content, values),
                "content_id": content_id,
                "attempt": attempt,
                "finished_at": utc_now(),
                "pieces": Jsonb([_as_json(image) for image in images]),
                "message": f"{END}{content_id}",
            },
        )
        return bool(rows)

    async def release(self, content_id: uuid.UUID, attempt: int) -> bool:
        """Put a content back in the queue, fenced, for another runner."""
        query = f"""
            UPDATE generation SET status = '{Status.QUEUED}'
            WHERE id = %(content_id)s AND {self.fence}
        """
        values = {"content_id": content_id, "attempt": attempt}
        return (await self._connection.execute(query.encode(), values)).rowcount == 1

    async def set_job(self, content_id: uuid.UUID, job_id: int) -> None:
        """Remember which job of the queue works on a content."""
        await self._connection.execute(
            "UPDATE generation SET job_id = %(job_id)s WHERE id = %(content_id)s",
            {"content_id": content_id, "job_id": job_id},
        )

    async def orphans(self) -> list[uuid.UUID]:
        """Open contents whose job is gone from the queue; locked until the transaction's end."""
        return [row["id"] for row in await fetch_rows(self._connection, _ORPHANS, {})]


@functools.cache
def _finish(fence: str, names: tuple[str, ...]) -> str:
    """The statement that writes these columns, all or nothing."""
    return f"""
        WITH held AS (
            UPDATE generation SET
                finished_at = %(finished_at)s, {", ".join(f"{n} = %({n})s" for n in names)}
            WHERE id = %(content_id)s AND {fence}
            RETURNING id, status
        ), pictures AS (
            INSERT INTO content_piece ({listed(PIECE)})
            SELECT {listed(PIECE, "p.")}
            FROM held, jsonb_to_recordset(%(pieces)s) AS p({typed(Image)})
        ), gone AS (
            DELETE FROM generation_event e USING held
            WHERE e.generation_id = held.id AND e.type IN {PASSING}
        ), added AS (
            INSERT INTO generation_event (generation_id, type, data)
            SELECT id, status, '{{}}' FROM held
        )
        SELECT pg_notify('{CHANNEL}', %(message)s) FROM held
    """


def _as_json(image: Image) -> dict[str, Any]:
    values = {name: getattr(image, name) for name in PIECE}
    for name in ("id", "generation_id"):
        values[name] = str(values[name])
    return values | {"created_at": image.created_at.isoformat()}
