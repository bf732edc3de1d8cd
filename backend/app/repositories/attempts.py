"""SQL of a job's life: what runners do to contents, whoever owns them. Each step is one statement.

An end is fenced by the attempt: who does not hold the newest one changes nothing. A step that
people may hear of writes its event and announces it in the same statement.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from app.core.db import DriverConnection, fetch_rows, fetch_value
from app.models import Content, GenerationRecord, Image, Status
from app.models.base import utc_now
from app.repositories.columns import GENERATION, PIECE, as_values, listed, parameters, typed
from app.repositories.contents import as_generation
from app.repositories.events import CHANNEL, END, PASSING
from app.repositories.upkeep.near import TAKEN_DOWN
from sdxl_contract.errors import ErrorCode

_CLAIM_TRIES = 20
_OPEN = (Status.QUEUED.value, Status.RUNNING.value)
# What a ticket of the queue is for: the content that its dead runner left running; else the next
# one of the owner whose turn it is. The ticket's own content then gets the ticket of that one, so
# that each open content keeps one. `queue_turn` says how turns are counted.
# Of that owner's next few (`together`), counted from the first that waits, one for the LoRAs of its
# last one goes first: each is overtaken by those alone that were asked for so soon after it.
_CLAIM = f"""
    WITH RECURSIVE own AS MATERIALIZED (
        SELECT id, status, owner, job_id FROM generation
        WHERE job_id = %(job_id)s AND finished_at IS NULL LIMIT 1
    ), owners AS (
        (SELECT owner FROM generation WHERE status = '{Status.QUEUED}' ORDER BY owner LIMIT 1)
        UNION ALL
        SELECT (
            SELECT g.owner FROM generation g
            WHERE g.status = '{Status.QUEUED}' AND g.owner > o.owner ORDER BY g.owner LIMIT 1
        ) FROM owners o WHERE o.owner IS NOT NULL
    ), fair AS (
        SELECT g.id, g.created_at, o.owner, coalesce(t.weight, 1) AS weight, t.loras AS last,
            greatest(t.ended, (SELECT max(began) FROM queue_turn), 0) AS begins
        FROM owners o
        CROSS JOIN LATERAL (
            SELECT id, created_at FROM generation
            WHERE owner = o.owner AND status = '{Status.QUEUED}'
            AND (retry_at IS NULL OR retry_at <= %(now)s)
            ORDER BY created_at, id LIMIT 1
        ) g
        LEFT JOIN queue_turn t ON t.owner = o.owner
        WHERE t.paused_at IS NULL
        ORDER BY begins, g.created_at, g.id LIMIT 1
    ), together AS (
        SELECT near.id, near.job_id, f.owner, f.begins, near.loras, near.images / f.weight AS share
        FROM fair f CROSS JOIN LATERAL (
            SELECT id, job_id, status, retry_at, created_at,
                coalesce((parameters ->> 'num_images')::float, 1) AS images,
                (
                    SELECT string_agg(DISTINCT l ->> 'sha256', ' ' ORDER BY l ->> 'sha256')
                    FROM jsonb_array_elements(g.loras) l
                ) AS loras
            FROM generation g
            WHERE g.owner = f.owner AND (g.created_at, g.id) >= (f.created_at, f.id)
            ORDER BY g.created_at, g.id LIMIT %(together)s
        ) near
        WHERE near.status = '{Status.QUEUED}'
        AND (near.retry_at IS NULL OR near.retry_at <= %(now)s)
        ORDER BY coalesce(near.loras = f.last, false) DESC, near.created_at, near.id LIMIT 1
    ), chosen AS MATERIALIZED (
        SELECT id, job_id, owner, 0::float AS share, NULL::float AS begins, NULL::text AS loras
        FROM own WHERE status = '{Status.RUNNING}'
        UNION ALL
        SELECT id, job_id, owner, share, begins, loras FROM together
        WHERE NOT EXISTS (SELECT 1 FROM own WHERE status = '{Status.RUNNING}')
    ), held AS (
        UPDATE generation g SET
            status = '{Status.RUNNING}', attempt = g.attempt + 1, job_id = %(job_id)s,
            started_at = coalesce(g.started_at, %(now)s), waiting_for = NULL, retry_at = NULL
        FROM chosen c
        WHERE g.id = c.id AND g.status IN {_OPEN}
        AND (g.status = '{Status.QUEUED}' OR c.begins IS NULL)
        RETURNING {listed(GENERATION, "g.")}
    ), swapped AS (
        UPDATE generation g SET job_id = c.job_id FROM chosen c, own, held
        WHERE g.id = own.id AND own.id <> c.id AND g.status = '{Status.QUEUED}'
        AND g.job_id = %(job_id)s
        RETURNING g.id
    ), tickets AS (
        UPDATE procrastinate_jobs j SET args = other.args
        FROM swapped, chosen c, procrastinate_jobs other
        WHERE (j.id, other.id) IN ((c.job_id, %(job_id)s), (%(job_id)s, c.job_id))
    ), turn AS (
        INSERT INTO queue_turn AS t (owner, began, ended, loras)
        SELECT c.owner, c.begins, c.begins + c.share, c.loras
        FROM chosen c JOIN held ON held.id = c.id
        WHERE c.begins IS NOT NULL
        ON CONFLICT (owner) DO UPDATE SET
            began = excluded.began, ended = excluded.ended, loras = excluded.loras
    ), added AS (
        INSERT INTO generation_event (generation_id, type, data)
        SELECT id, 'started', jsonb_build_object('attempt', attempt) FROM held
    )
    SELECT {listed(GENERATION, "held.")}, chosen.id AS chosen_id,
        (SELECT args ->> 'trace' FROM procrastinate_jobs WHERE id = chosen.job_id) AS trace,
        CASE WHEN held.id IS NOT NULL THEN pg_notify('{CHANNEL}', held.id::text) END AS told
    FROM chosen LEFT JOIN held ON held.id = chosen.id
"""
_RELEASE = f"""
    WITH held AS (
        UPDATE generation SET
            status = '{Status.QUEUED}', waiting_for = %(waiting_for)s, retry_at = %(retry_at)s,
            releases = releases + %(forgiven)s, {{costs}}
        WHERE id = %(content_id)s AND {{fence}}
        RETURNING id, waiting_for
    ), gone AS (
        DELETE FROM generation_event e USING held
        WHERE e.generation_id = held.id AND e.type IN {PASSING}
    ), added AS (
        INSERT INTO generation_event (generation_id, type, data)
        SELECT id, 'queued', '{{{{}}}}' FROM held
    )
    SELECT pg_notify('{CHANNEL}', id::text) FROM held
"""
_EXPIRE = f"""
    WITH late AS (
        SELECT id FROM generation
        WHERE status = '{Status.QUEUED}' AND deadline_at <= %(now)s
        ORDER BY deadline_at LIMIT 500 FOR UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE generation g SET
            status = '{Status.FAILED}', finished_at = %(now)s, retry_at = NULL,
            waiting_for = NULL, error = jsonb_build_object(
                'code', '{ErrorCode.TIMEOUT}',
                'message', 'its deadline passed while it waited: '
                    || coalesce(g.waiting_for ->> 'message', %(reason)s::text)
            )
        FROM late WHERE g.id = late.id RETURNING g.id
    ), gone AS (
        DELETE FROM generation_event e USING ended
        WHERE e.generation_id = ended.id AND e.type IN {PASSING}
    ), added AS (
        INSERT INTO generation_event (generation_id, type, data)
        SELECT id, '{Status.FAILED}', '{{}}' FROM ended
    )
    SELECT id, pg_notify('{CHANNEL}', '{END}' || id::text) FROM ended
"""
# Skips what another runner is just taking up.
_ORPHANS = f"""
    SELECT id FROM generation g WHERE status IN {_OPEN} AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs j
        WHERE j.id = g.job_id AND j.status IN ('todo', 'doing')
    )
    ORDER BY created_at FOR UPDATE SKIP LOCKED
"""


class Claimed(NamedTuple):
    """A content that an attempt was begun at, and the trace of the call that asked for it."""

    content: Content
    trace: str | None


class Holds(Enum):
    """What has become of a content since an attempt at it began."""

    HELD = "it is this attempt's"
    UNWANTED = "it is this attempt's, and somebody asked to stop it"
    WRITTEN = "this attempt has written its end"
    LOST = "another attempt has it, or had"
    GONE = "it was deleted"


_RECORD_COLUMNS = tuple(GenerationRecord.__table__.columns.keys())
_RECORD = f"""
    INSERT INTO generation_record ({listed(_RECORD_COLUMNS)})
    VALUES ({parameters(_RECORD_COLUMNS)}) ON CONFLICT (content_id) DO NOTHING
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

    async def are_taken_down(
        self,
        hashes: Sequence[str],
        seen: Sequence[tuple[int, float]],
        weights: Sequence[str] = (),
    ) -> bool:
        """Whether an order names a picture of these, or near them, or LoRAs of these `weights`.

        `seen`: likenesses and shapes of pictures.
        """
        lists = {
            "hashes": [*hashes],
            "likenesses": [likeness for likeness, _ in seen],
            "shapes": [shape for _, shape in seen],
            "weights": [*weights],
        }
        return bool(await fetch_value(self._connection, TAKEN_DOWN, lists))

    async def claim(self, job_id: int, together: int = 1) -> Claimed | None:
        """Begin a new attempt at the content that is next; None where nothing can be done now.

        `together`: places of an owner's own line within which one for the LoRAs of its last content
        goes first; 1 keeps the order of asking.

        Taking up a `running` content is right where `job_id` is its ticket: its last runner is
        held for dead, and if it wakes, the grown attempt keeps it from writing.
        """
        for _ in range(_CLAIM_TRIES):
            values = {"job_id": job_id, "now": utc_now(), "together": together}
            rows = await fetch_rows(self._connection, _CLAIM, values)
            if not rows:
                return None
            if rows[0]["id"] is not None:
                return Claimed(as_generation(rows[0], []), rows[0]["trace"])
            # Another runner chose the same one at the same moment and was first.
        return None

    async def has_work(self, job_id: int) -> bool:
        """Whether the content that a ticket stands for has not ended."""
        query = """
            SELECT EXISTS (
                SELECT 1 FROM generation WHERE job_id = %(job_id)s AND finished_at IS NULL
            )
        """
        return bool(await fetch_value(self._connection, query, {"job_id": job_id}))

    async def holds(self, content_id: uuid.UUID, attempt: int) -> Holds:
        """How a content is to its attempt number `attempt`."""
        query = """
            SELECT status, attempt, cancel_requested_at IS NOT NULL AS is_unwanted
            FROM generation WHERE id = %(content_id)s
        """
        rows = await fetch_rows(self._connection, query, {"content_id": content_id})
        if not rows:
            return Holds.GONE
        row = rows[0]
        if row["attempt"] != attempt:
            return Holds.LOST
        if Status(row["status"]) is Status.RUNNING:
            return Holds.UNWANTED if row["is_unwanted"] else Holds.HELD
        return Holds.WRITTEN if Status(row["status"]).is_final else Holds.LOST

    async def finish(
        self,
        content_id: uuid.UUID,
        attempt: int,
        values: Mapping[str, Any],
        images: Sequence[Image] = (),
        record: GenerationRecord | None = None,
    ) -> bool:
        """Write a final state, its pictures and its event. False: another attempt holds it.

        `record` is kept in the same transaction.
        """
        if record is not None:
            async with self._connection.transaction():
                kept = await self.finish(content_id, attempt, values, images)
                if kept:
                    await self._connection.execute(
                        _RECORD,
                        as_values(
                            GenerationRecord,
                            {name: getattr(record, name) for name in _RECORD_COLUMNS},
                        ),
                    )
            return kept
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

    async def release(
        self,
        content_id: uuid.UUID,
        attempt: int,
        *,
        waiting_for: Mapping[str, str] | None = None,
        retry_at: datetime | None = None,
        is_forgiven: bool = False,
        costs: Mapping[str, Any] = MappingProxyType({}),
    ) -> bool:
        """Put a content back in the queue, fenced, for another runner.

        Args:
            retry_at: nobody takes it up before.
            is_forgiven: the attempt does not count as one that was interrupted.
            costs: columns of what the attempt used.
        """
        sets = ", ".join(f"{name} = %({name})s" for name in costs)
        query = _RELEASE.format(fence=self.fence, costs=sets or "provider = provider")
        values = {
            **as_values(Content, costs),
            "content_id": content_id,
            "attempt": attempt,
            "waiting_for": None if waiting_for is None else Jsonb(dict(waiting_for)),
            "retry_at": retry_at,
            "forgiven": int(is_forgiven),
        }
        return bool(await fetch_rows(self._connection, query, values))

    async def wait_for(
        self, content_id: uuid.UUID, attempt: int, waiting_for: Mapping[str, str] | None
    ) -> None:
        """Write what a running attempt waits for, fenced; None where it goes on."""
        query = f"""
            WITH held AS (
                UPDATE generation SET waiting_for = %(waiting_for)s
                WHERE id = %(content_id)s AND {self.fence} RETURNING id
            )
            SELECT pg_notify('{CHANNEL}', id::text) FROM held
        """
        values = {
            "content_id": content_id,
            "attempt": attempt,
            "waiting_for": None if waiting_for is None else Jsonb(dict(waiting_for)),
        }
        await fetch_rows(self._connection, query, values)

    async def expire(self, reason: str) -> list[uuid.UUID]:
        """Fail what waits past its deadline; `reason` is for those that were never taken up."""
        values = {"now": utc_now(), "reason": reason}
        return [row["id"] for row in await fetch_rows(self._connection, _EXPIRE, values)]

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
                finished_at = %(finished_at)s, waiting_for = NULL, retry_at = NULL,
                {", ".join(f"{n} = %({n})s" for n in names)}
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
