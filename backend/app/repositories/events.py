"""SQL of what happens to contents, and its announcement to every server on the database.

A passing event (progress, preview) is kept only while its content is being drawn.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Generation, GenerationEvent, Status

CHANNEL = "content_events"
STOP = "stop:"
END = "end:"
_PASSING = ("progress", "preview")


# One message to the database instead of three: these are on every picture's way.
_INSERT = """
    INSERT INTO generation_event (generation_id, type, data)
    VALUES (:content_id, :kind, CAST(:data AS jsonb))
"""
_NOTIFY = f"SELECT pg_notify('{CHANNEL}', :message)"
_ADD = text(f"WITH added AS ({_INSERT}) {_NOTIFY}")
_ADD_END = text(f"""
    WITH gone AS (
        DELETE FROM generation_event
        WHERE generation_id = :content_id AND type IN {_PASSING}
    ), added AS ({_INSERT})
    {_NOTIFY}
""")
_ADD_PASSING = text(f"""
    WITH held AS (
        SELECT id, cancel_requested_at IS NOT NULL AS is_unwanted FROM generation
        WHERE id = :content_id AND attempt = :attempt AND status = '{Status.RUNNING}'
    ), added AS (
        INSERT INTO generation_event (generation_id, type, data)
        SELECT id, :kind, CAST(:data AS jsonb) FROM held
    )
    SELECT is_unwanted, pg_notify('{CHANNEL}', :message) FROM held
""")


class EventRepository:
    """Events by content; announcements are sent when the transaction commits."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, content_id: uuid.UUID, kind: str, data: dict[str, Any]) -> None:
        """Write an event that stays. A final one takes the passing ones away."""
        is_end = kind in tuple(Status)
        values = {
            "content_id": content_id,
            "kind": str(kind),
            "data": json.dumps(data),
            "message": f"{END if is_end else ''}{content_id}",
        }
        await self._session.execute(_ADD_END if is_end else _ADD, values)

    async def add_passing(
        self, content_id: uuid.UUID, attempt: int, kind: str, data: dict[str, Any]
    ) -> bool:
        """Write an event of a running attempt; nothing where another one holds the content.

        Returns whether somebody asked to stop the content, which the announcement of it may not
        have reached.
        """
        values = {
            "content_id": content_id,
            "attempt": attempt,
            "kind": kind,
            "data": json.dumps(data),
            "message": str(content_id),
        }
        return bool(await self._session.scalar(_ADD_PASSING, values))

    async def ask_to_stop(self, content_id: uuid.UUID) -> None:
        """Tell whoever draws a content to stop."""
        await self._announce(f"{STOP}{content_id}")

    async def _announce(self, message: str) -> None:
        await self._session.execute(select(func.pg_notify(CHANNEL, message)))

    async def after(self, content_id: uuid.UUID, event_id: int) -> Sequence[GenerationEvent]:
        """The events of a content that came after one, in order."""
        rows = await self._session.scalars(
            select(GenerationEvent)
            .where(GenerationEvent.generation_id == content_id, GenerationEvent.id > event_id)
            .order_by(GenerationEvent.id)
        )
        return rows.all()

    async def newest(self, content_id: uuid.UUID) -> int:
        """The number of a content's last event; 0 where it has none."""
        number = await self._session.scalar(
            select(func.max(GenerationEvent.id)).where(GenerationEvent.generation_id == content_id)
        )
        return number or 0

    async def position(self, content_id: uuid.UUID) -> int:
        """How many contents wait before this one; 0 is next."""
        mine = (
            select(Generation.created_at, Generation.id)
            .where(Generation.id == content_id)
            .subquery()
        )
        count = await self._session.scalar(
            select(func.count())
            .select_from(Generation)
            .join(mine, tuple_(Generation.created_at, Generation.id) < tuple_(*mine.c))
            .where(Generation.status == Status.QUEUED, Generation.finished_at.is_(None))
        )
        return count or 0
