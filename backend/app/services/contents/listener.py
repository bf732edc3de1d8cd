"""Hears what servers on the same database announce: that a content changed, or is to be stopped;
and who waits for that in this process.

A lost announcement delays, it never loses anything: waiters also look by themselves, and each
attempt asks whether it is wanted.
Must not know: what is done about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

import psycopg
from psycopg import sql

from app.repositories.events import CHANNEL, END, STOP

_RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


class Waiters:
    """Who waits in this process for a content's news, and whether the server is stopping."""

    def __init__(self) -> None:
        # Each waiter's event, and whether only an end wakes it.
        self._waiters: dict[uuid.UUID, dict[asyncio.Event, bool]] = {}
        self.stopping = False

    def stop(self) -> None:
        """Wake everybody: the server stops. Called where the waiters run, in the event loop."""
        self.stopping = True
        for events in self._waiters.values():
            for event in events:
                event.set()

    def announce(self, content_id: uuid.UUID, *, ended: bool = True) -> None:
        """Wake who waits for `content_id`: all at its end, else those whom any news wakes."""
        for event, ends_only in self._waiters.get(content_id, {}).items():
            if ended or not ends_only:
                event.set()

    @contextlib.contextmanager
    def listening(
        self, content_id: uuid.UUID, *, ends_only: bool = False
    ) -> Iterator[asyncio.Event]:
        """An event that is set when something happens to `content_id`, or only when it ends."""
        event = asyncio.Event()
        waiters = self._waiters.setdefault(content_id, {})
        waiters[event] = ends_only
        try:
            yield event
        finally:
            del waiters[event]
            if not waiters:
                self._waiters.pop(content_id, None)


class OnChange(Protocol):
    """What is called with a content's news."""

    def __call__(self, content_id: uuid.UUID, *, ended: bool) -> None:
        """`ended`: it is the last news of this content."""


class Listener:
    """Calls `on_change(content_id, ended=…)` and `on_stop(content_id)`."""

    def __init__(
        self,
        conninfo: str,
        on_change: OnChange,
        on_stop: Callable[[uuid.UUID], None],
    ) -> None:
        self._conninfo = conninfo
        self._on_change = on_change
        self._on_stop = on_stop
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._listen_for_ever(), name="event listener")

    async def stop(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _listen_for_ever(self) -> None:
        while True:
            try:
                await self._listen()
            except psycopg.Error as error:
                log.warning("listening for events failed (%s); again", type(error).__name__)
            except Exception:
                log.exception("listening for events failed")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._conninfo, autocommit=True, connect_timeout=5
        )
        async with connection:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
            async for notice in connection.notifies():
                self._hear(notice.payload)

    def _hear(self, message: str) -> None:
        is_stop, is_end = message.startswith(STOP), message.startswith(END)
        try:
            content_id = uuid.UUID(message.removeprefix(STOP).removeprefix(END))
        except ValueError:
            return
        if is_stop:
            self._on_stop(content_id)
        else:
            self._on_change(content_id, ended=is_end)
