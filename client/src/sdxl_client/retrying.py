"""When a call is sent again, and how an event stream is read. Pure functions."""

from __future__ import annotations

import json
import random
from typing import Any

from sdxl_client.calls import Call
from sdxl_client.errors import ApiError, ConnectionLost, SdxlError
from sdxl_client.models import Event

_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 30.0


def pause(call: Call[Any], error: SdxlError, tried: int, retries: int) -> float | None:
    """Seconds until a call is sent again after `tried` attempts; None: it is not."""
    if tried > retries:
        return None
    if isinstance(error, ApiError):
        # A 429 was refused before anything began; after the others that is not known.
        if error.status not in _AGAIN or (error.status != 429 and not call.repeats):
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= _LONGEST_SECONDS else None
    elif not isinstance(error, ConnectionLost) or not call.repeats:
        return None
    backoff = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** (tried - 1))
    return backoff * (0.5 + random.random() / 2)


class EventLines:
    """Lines of a stream, put together to events."""

    def __init__(self) -> None:
        self.last_id: str | None = None
        self._clear()

    def _clear(self) -> None:
        self._type = "message"
        self._data: list[str] = []
        self._id: str | None = None

    def take(self, line: str) -> Event | None:
        """The event that ends with this line; None where none does."""
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                self._type = value
            elif name == "data":
                self._data.append(value)
            elif name == "id":
                self.last_id = self._id = value
            return None
        if not self._data:
            self._clear()
            return None
        try:
            data = json.loads("\n".join(self._data))
        except ValueError:
            data = None
        event = Event(id=self._id, type=self._type, data=data if isinstance(data, dict) else {})
        self._clear()
        return event
