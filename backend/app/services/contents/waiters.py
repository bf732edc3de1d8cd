"""Who waits in this process for something to happen to a content."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator


class Waiters:
    """Who waits in this process for a content's news, and whether the server is stopping."""

    def __init__(self) -> None:
        # Each waiter's event, and whether only an end wakes it.
        self._waiters: dict[uuid.UUID, dict[asyncio.Event, bool]] = {}
        self.stopping = False

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
