"""What happens to a content, as it happens.

Duty: events in order, from any point on, whichever server draws. The last one is always the
content's end.
Must not know: HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from app.core.db import Database
from app.models import Status
from app.repositories.attempts import AttemptRepository
from app.repositories.events import EventRepository
from app.services.contents.waiters import Waiters

_LOOK_SECONDS = 1.0
_STOP_SECONDS = 0.2


class Event(NamedTuple):
    """`number` is None where the event cannot be resumed after: a waiting line's position."""

    number: int | None
    type: str
    data: dict[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self.type in tuple(Status) and Status(self.type).is_final


class EventService:
    """Live events."""

    def __init__(self, database: Database, waiters: Waiters) -> None:
        self._database = database
        self._waiters = waiters

    async def follow(self, content_id: uuid.UUID, after: int = 0) -> AsyncGenerator[Event]:
        """Events after number `after`; ends with the content, its deletion or the server.

        A number that this content never gave (another one's, or invented) is none: everything
        is told from the beginning, rather than nothing until the end.
        """
        last, shown = await self._known(content_id, after), -1
        look_at = 0.0
        with self._waiters.listening(content_id) as news:
            while not self._waiters.stopping:
                if news.is_set() or time.monotonic() >= look_at:
                    news.clear()
                    look_at = time.monotonic() + _LOOK_SECONDS
                    status, events, position = await self._look(content_id, last)
                    for event in events:
                        last = event.number or last
                        yield event
                        if event.is_final:
                            return
                    if status is None:
                        return
                    if status.is_final:
                        # Resumed after its end: say it again, or the caller would ask for ever.
                        yield Event(None, status.value, {})
                        return
                    if position is not None and position != shown:
                        shown = position
                        yield Event(None, "queued", {"position": position})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), _STOP_SECONDS)

    async def _known(self, content_id: uuid.UUID, number: int) -> int:
        """`number`, or 0 where the content's events have not come so far."""
        if number <= 0:
            return 0
        async with self._database.direct() as connection:
            return number if number <= await EventRepository(connection).newest(content_id) else 0

    async def _look(
        self, content_id: uuid.UUID, last: int
    ) -> tuple[Status | None, list[Event], int | None]:
        async with self._database.direct() as connection:
            # The status first: an end that comes in between is then among the events.
            status = await AttemptRepository(connection).status(content_id)
            repository = EventRepository(connection)
            rows = await repository.after(content_id, last)
            position = None
            if status is Status.QUEUED:
                position = await repository.position(content_id)
        return status, [Event(row.id, row.type, row.data) for row in rows], position
