"""SQL of the contents: listing, holding, removing; and what is on every picture's way.

`ContentStatements` speaks to the driver itself.

Rows become `Content`s that belong to no session.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb
from sqlalchemy import and_, delete, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.core.db import DriverConnection, fetch_rows
from app.models import PAUSED, Content, Image, Status
from app.models.base import utc_now
from app.models.filters import ContentFilter
from app.repositories.columns import GENERATION, PIECE, as_values, listed, parameters
from app.repositories.filters import conditions

# What comes while its owner's queue is paused waits for that.
_IF_PAUSED = (
    "(SELECT %(paused)s::jsonb FROM queue_turn WHERE owner = %(owner)s::varchar "
    "AND paused_at IS NOT NULL)"
)
_ADD = f"""
    WITH added AS (
        INSERT INTO generation ({listed(GENERATION)})
        VALUES ({parameters(GENERATION).replace("%(waiting_for)s", _IF_PAUSED)})
    )
    INSERT INTO generation_event (generation_id, type, data)
    VALUES (%(id)s, '{Status.QUEUED}', '{{}}')
"""
_PAUSE = f"""
    WITH turn AS (
        INSERT INTO queue_turn AS t (owner, paused_at) VALUES (%(owner)s, %(now)s)
        ON CONFLICT (owner) DO UPDATE SET paused_at = coalesce(t.paused_at, excluded.paused_at)
    )
    UPDATE generation SET waiting_for = %(paused)s
    WHERE owner = %(owner)s AND status = '{Status.QUEUED}'
"""
_RESUME = f"""
    WITH turn AS (UPDATE queue_turn SET paused_at = NULL WHERE owner = %(owner)s)
    UPDATE generation SET waiting_for = NULL
    WHERE owner = %(owner)s AND status = '{Status.QUEUED}'
    AND waiting_for ->> 'reason' = '{PAUSED["reason"]}'
"""
_LINE = f"""
    SELECT (SELECT paused_at FROM queue_turn WHERE owner = %(owner)s) AS paused_at,
        count(*) FILTER (WHERE status = '{Status.QUEUED}') AS queued,
        count(*) FILTER (WHERE status = '{Status.RUNNING}') AS running
    FROM generation WHERE owner = %(owner)s AND status IN ('{Status.QUEUED}', '{Status.RUNNING}')
"""
_PIECE_PREFIX = "piece_"
_PIECES = ", ".join(f"p.{name} AS {_PIECE_PREFIX}{name}" for name in PIECE)
_GET = f"""
    SELECT {listed(GENERATION, "g.")}, {_PIECES}
    FROM generation g LEFT JOIN content_piece p ON p.generation_id = g.id
    WHERE g.id = %(content_id)s AND g.owner = %(owner)s
    ORDER BY p.position
"""
_USUAL = f"""
    SELECT (sum(usd) / nullif(sum(images), 0))::float AS usd,
        avg(width * height)::float AS pixels, avg(steps)::float AS steps
    FROM (
        SELECT cost_usd AS usd, coalesce((parameters ->> 'num_images')::int, 1) AS images,
            (parameters ->> 'width')::float AS width, (parameters ->> 'height')::float AS height,
            (parameters ->> 'steps')::float AS steps
        FROM generation WHERE owner = %(owner)s AND cost_usd IS NOT NULL
        AND status = '{Status.SUCCEEDED}'
        ORDER BY created_at DESC LIMIT 50
    ) AS recent
"""


class Line(NamedTuple):
    """An owner's queue: since when it is paused, and how many of its contents wait and run."""

    paused_at: datetime | None
    queued: int
    running: int


class Usual(NamedTuple):
    """A picture as an owner usually has them drawn; None: not known."""

    usd: float
    pixels: float | None = None
    steps: float | None = None


class ContentStatements:
    """Contents of one owner."""

    def __init__(self, connection: DriverConnection, owner: str) -> None:
        self._connection = connection
        self._owner = owner

    async def pause(self) -> None:
        """Begin nothing more of the owner's; what runs goes on."""
        values = {"owner": self._owner, "now": utc_now(), "paused": Jsonb(PAUSED)}
        await self._connection.execute(_PAUSE.encode(), values)

    async def resume(self) -> None:
        """Let the owner's contents take their turns again."""
        await self._connection.execute(_RESUME.encode(), {"owner": self._owner})

    async def line(self) -> Line:
        """The owner's queue as it is."""
        rows = await fetch_rows(self._connection, _LINE, {"owner": self._owner})
        return Line(**rows[0])

    async def add(self, content: Content) -> None:
        """Insert; raises psycopg's IntegrityError where its idempotency key was used meanwhile."""
        values = {name: getattr(content, name) for name in GENERATION}
        values = {**as_values(Content, values), "paused": Jsonb(PAUSED)}
        await self._connection.execute(_ADD.encode(), values)

    async def get(self, content_id: uuid.UUID) -> Content | None:
        """One, with its pictures."""
        rows = await fetch_rows(
            self._connection, _GET, {"content_id": content_id, "owner": self._owner}
        )
        if not rows:
            return None
        return as_generation(
            rows[0],
            [
                Image.transient(**{name: row[_PIECE_PREFIX + name] for name in PIECE})
                for row in rows
                if row[f"{_PIECE_PREFIX}id"] is not None
            ],
        )

    async def usual(self) -> Usual | None:
        """The mean of the owner's last priced contents; None where none was priced."""
        rows = await fetch_rows(self._connection, _USUAL, {"owner": self._owner})
        return None if rows[0]["usd"] is None else Usual(**rows[0])


def as_generation(row: dict[str, Any], images: list[Image]) -> Content:
    """A row with all of its table's columns."""
    return Content.transient(**{name: row[name] for name in GENERATION}, images=images)


class ContentRepository:
    """Contents of one owner."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def locked(self, content_id: uuid.UUID) -> Content | None:
        """One, with its pictures, held until the transaction's end."""
        return await self._session.scalar(
            select(Content)
            .where(Content.id == content_id, Content.owner == self._owner)
            .options(selectinload(Content.images))
            .with_for_update(of=Content)
        )

    async def by_idempotency_key(self, key: str) -> Content | None:
        """The one that was accepted with this key, with its pictures."""
        return await self._session.scalar(
            select(Content)
            .where(Content.owner == self._owner, Content.idempotency_key == key)
            .options(selectinload(Content.images))
        )

    async def same(
        self, digest: str, *, opened_after: datetime, ended_after: datetime
    ) -> Content | None:
        """The newest of the same request that is open, or was drawn after a moment."""
        return await self._session.scalar(
            select(Content)
            .where(
                Content.owner == self._owner,
                Content.request_sha256 == digest,
                Content.created_at > opened_after,
                or_(
                    Content.finished_at.is_(None),
                    and_(Content.status == Status.SUCCEEDED, Content.finished_at > ended_after),
                ),
            )
            .order_by(Content.created_at.desc(), Content.id.desc())
            .limit(1)
            .options(selectinload(Content.images))
        )

    async def marked(
        self, mark: str, *, after: datetime, is_open: bool, limit: int
    ) -> Sequence[Content]:
        """Those whose idempotency key begins with `mark`, newest first, without pictures."""
        query = select(Content).where(
            Content.owner == self._owner,
            Content.created_at > after,
            Content.idempotency_key.startswith(mark, autoescape=True),
        )
        if is_open:
            query = query.where(Content.finished_at.is_(None))
        rows = await self._session.scalars(
            query.order_by(Content.created_at.desc(), Content.id.desc()).limit(limit)
        )
        return rows.all()

    async def page(
        self,
        *,
        limit: int,
        after: tuple[datetime, uuid.UUID] | None,
        wanted: ContentFilter,
    ) -> Sequence[Content]:
        """Newest first; `after` is the last one of the page before."""
        query = select(Content).where(Content.owner == self._owner, *conditions(wanted))
        if after is not None:
            query = query.where(tuple_(Content.created_at, Content.id) < after)
        rows = await self._session.scalars(
            query.order_by(Content.created_at.desc(), Content.id.desc())
            .limit(limit)
            .options(selectinload(Content.images))
        )
        return rows.all()

    async def delete(self, content_id: uuid.UUID) -> tuple[Content, list[str]] | None:
        """Remove one. Returns what it was and its objects' keys; None where it is not there."""
        content = await self.locked(content_id)
        if content is None:
            return None
        keys = [key for image in content.images for key in image.keys]
        await self._session.execute(delete(Content).where(Content.id == content_id))
        return content, keys
