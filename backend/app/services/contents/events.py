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
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, NamedTuple

from app.core.db import Database
from app.models import PAUSED, Status
from app.repositories.attempts import AttemptRepository
from app.repositories.events import EventRepository
from app.services.contents.listener import Waiters

QUEUED = Status.QUEUED.value
_LOOK_SECONDS = 1.0


class Event(NamedTuple):
    """`number` is None where the event cannot be resumed after: a waiting line's position."""

    number: int | None
    type: str
    data: dict[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self.type in tuple(Status) and Status(self.type).is_final


class _Look(NamedTuple):
    """What was found; `line` is where it is in line, None where it is in none any more."""

    status: Status | None
    events: list[Event]
    line: dict[str, Any] | None


class EventService:
    """Live events. `line_waits_for`: what keeps every content from being taken up, if anything."""

    def __init__(
        self,
        database: Database,
        waiters: Waiters,
        line_waits_for: Callable[[], Mapping[str, str] | None] = lambda: None,
    ) -> None:
        self._database = database
        self._waiters = waiters
        self._line_waits_for = line_waits_for

    async def follow(self, content_id: uuid.UUID, after: int = 0) -> AsyncGenerator[Event]:
        """Events after number `after`; ends with the content, its deletion or the server.

        The first is always `queued`, and each `queued` says what is waited for. A number that this
        content never gave (another one's, or invented) is none: everything is told from the
        beginning, rather than nothing until the end.
        """
        last = await self._known(content_id, after)
        told: dict[str, Any] | None = None if last == 0 else {}
        look_at = 0.0
        with self._waiters.listening(content_id) as news:
            while not self._waiters.stopping:
                if news.is_set() or time.monotonic() >= look_at:
                    news.clear()
                    look_at = time.monotonic() + _LOOK_SECONDS
                    look = await self._look(content_id, last)
                    for number, event in enumerate(look.events):
                        last = event.number or last
                        if event.type == QUEUED:
                            # Only the last one is the present; how it was at others is not kept.
                            is_now = number == len(look.events) - 1 and look.line is not None
                            told = look.line if is_now else {"position": 0, "waiting_for": None}
                            yield Event(event.number, QUEUED, told or {})
                            continue
                        if told is None:  # a content of an older version, which has no such event
                            told = {}
                            yield Event(None, QUEUED, {"position": 0, "waiting_for": None})
                        yield event
                        if event.is_final:
                            return
                    if look.status is None:
                        return
                    if look.status.is_final:
                        # Resumed after its end: say it again, or the caller would ask for ever.
                        yield Event(None, look.status.value, {})
                        return
                    if look.line is not None and look.line != told:
                        told = look.line
                        yield Event(None, QUEUED, told)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), look_at - time.monotonic())

    async def latest(self, content_id: uuid.UUID) -> dict[str, dict[str, Any]]:
        """The data of the last event of each type."""
        async with self._database.direct() as connection:
            events = await EventRepository(connection).after(content_id, 0)
        return {event.type: event.data for event in events}

    async def position(self, content_id: uuid.UUID) -> int:
        """How many contents are before a waiting one."""
        async with self._database.direct() as connection:
            return (await EventRepository(connection).place(content_id)).position

    async def _known(self, content_id: uuid.UUID, number: int) -> int:
        """`number`, or 0 where the content's events have not come so far."""
        if number <= 0:
            return 0
        async with self._database.direct() as connection:
            return number if number <= await EventRepository(connection).newest(content_id) else 0

    async def _look(self, content_id: uuid.UUID, last: int) -> _Look:
        async with self._database.direct() as connection:
            # The status first: an end that comes in between is then among the events.
            status = await AttemptRepository(connection).status(content_id)
            repository = EventRepository(connection)
            rows = await repository.after(content_id, last)
            events = [Event(row.id, row.type, row.data) for row in rows]
            line = None
            # Begun since the status was read: where it was in line is over.
            if status is Status.QUEUED and (not events or events[-1].type == QUEUED):
                place = await repository.place(content_id)
                own = place.waiting_for
                is_paused = own is not None and own["reason"] == PAUSED["reason"]
                told = own if is_paused else self._line_waits_for() or own
                line = {"position": place.position, "waiting_for": told}
        return _Look(status, events, line)
