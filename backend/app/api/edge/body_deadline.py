"""A request's body has to come: a client that falls silent, or trickles, is let go.

Must not know: routes.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.dialect import Dialects
from app.core.errors import Fault, ProblemCode


class BodyDeadline:
    """Answers 408 where a body stands still, or comes slower than any line.

    Args:
        silence_s: seconds without a byte.
        grace_s: seconds that any body may take.
        slowest: bytes a second, which give it more time.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        dialects: Dialects,
        silence_s: float,
        grace_s: float = 60.0,
        slowest: float = 2048.0,
    ) -> None:
        self._app = app
        self._dialects = dialects
        self._silence_s = silence_s
        self._grace_s = grace_s
        self._slowest = slowest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, looking at the clock while its body comes in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        received, waited = 0, 0.0
        complete = late = started = False

        async def timely() -> Message:
            nonlocal received, waited, complete, late
            if complete:
                return await receive()  # until the client goes
            # Only time that we wait counts, not what the application takes in between.
            left = self._grace_s + received / self._slowest - waited
            since = loop.time()
            try:
                async with asyncio.timeout(max(0.0, min(self._silence_s, left))):
                    message = await receive()
            except TimeoutError:
                complete = late = True
                return {"type": "http.disconnect"}
            waited += loop.time() - since
            received += len(message.get("body", b""))
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if late and not started:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, timely, guarded)
        except Exception:
            if not late or started:
                raise
        if late and not started:
            fault = Fault(
                408,
                ProblemCode.REQUEST_TIMEOUT,
                f"The request's body did not come: nothing for {self._silence_s:g} s, or less than "
                f"{self._slowest:g} bytes a second.",
            )
            await self._dialects.of(scope).shape(fault)(scope, receive, send)
