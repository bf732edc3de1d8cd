"""Reads a stream of server-sent events (WHATWG HTML, section 9.2).

Must not know: what the events mean.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator


class EventTooLarge(ValueError):
    """One event has more bytes than were allowed."""


async def read_events(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncGenerator[str, None]:
    """The data of each event, its lines joined by newlines; comments and other fields are skipped.

    Raises:
        EventTooLarge: one event is larger than `max_bytes`.
    """
    pending = b""
    data: list[str] = []
    async for chunk in chunks:
        pending += chunk
        if len(pending) > max_bytes:
            raise EventTooLarge("an event is too large")
        *lines, pending = pending.replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if not line:
                if data:
                    yield "\n".join(data)
                    data = []
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" ").decode(errors="replace"))
