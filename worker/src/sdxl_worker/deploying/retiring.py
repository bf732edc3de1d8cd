"""A container that has failed for good asks to be replaced, but not more often than helps.

Must not know: Modal, why it failed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

# The last answer is on its way.
_ANSWER_OUT_S = 1.0


class RetireWhenFailed:
    """ASGI middleware: once the worker has failed for good, asks for a fresh container.

    A model that could not be put back serves nobody; a container that goes on taking requests
    would answer every one of them with 503 for as long as there is traffic.

    Args:
        failed: whether it has.
        patience_s: seconds before a container that never could serve is given up. It answers 503
            until then: every retirement is followed by another paid start, which would most
            likely fail in the same way.
        retire: tells the platform to send no more; called once, after the answer is out.
    """

    def __init__(
        self,
        app: Any,
        failed: Callable[[], bool],
        retire: Callable[[], Awaitable[None]],
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._clock = clock
        self._not_before = clock() + (patience_s if failed() else 0.0)
        self._failed = failed
        self._retire = retire
        self._retired = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI scope, then look."""
        await self._app(scope, receive, send)
        if scope["type"] != "http" or self._retired or self._clock() < self._not_before:
            return
        if self._failed():
            self._retired = True
            await self._retire()


async def leave() -> None:
    """End the process, as a platform that has no other way to hear of it expects."""
    await asyncio.sleep(_ANSWER_OUT_S)
    os._exit(1)
