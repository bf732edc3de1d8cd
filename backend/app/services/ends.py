"""Who waits in this process for something to happen to a content."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator


class Ends:
    """Who waits in this process for a content's end, and whether the server is stopping."""

    def __init__(self) -> None:
        self._events: dict[uuid.UUID, set[asyncio.Event]] = {}
        self.stopping = False

    def announce(self, content_id: uuid.UUID) -> None:
        """Wake who waits for `content_id`."""
        for event in self._events.get(content_id, ()):
            event.set()

    @contextlib.contextmanager
    def listening(self, content_id: uuid.UUID) -> Iterator[asyncio.Event]:
        """An event that is set when `content_id` ends in this process."""
        event = asyncio.Event()
        listeners = self._events.setdefault(content_id, set())
        listeners.add(event)
        try:
            yield event
        finally:
            listeners.discard(event)
            if not listeners:
                self._events.pop(content_id, None)
