"""How many bytes a request may have, counted while they come.

Duty: refuse a body over its limit before it fills anything, so that the caller reads the refusal.
Must not know: keys, routes.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.dialect import Dialects
from app.core.errors import Fault, ProblemCode

_MULTIPART_EXTRA_BYTES = 256 * 1024  # a form's other fields and its boundaries
# What is read of a request that has been answered already.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 2**20


class _Unread:
    """One exchange; an answer that comes before the request's end ends the connection, slowly.

    Closed at once, the connection would be reset and a client that is still sending would lose
    the answer. Left open, the server would read on for as long as anybody likes to send. So the
    answer says `Connection: close`, and what comes meanwhile is thrown away, up to a limit.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send = receive, send
        self._left = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

    async def receive(self) -> Message:
        """The next part of the request."""
        message = await self._receive()
        self._left = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """The next part of the answer."""
        if self._left and message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "headers": headers}
        elif (
            self._left
            and message["type"] == "http.response.body"
            and not message.get("more_body", False)
        ):
            await self._send({**message, "more_body": True})
            await self._throw_away()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _throw_away(self) -> None:
        thrown = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._left and thrown < _LINGER_BYTES:
                    thrown += len((await self.receive()).get("body", b""))


class BodyLimit:
    """Refuses a request body over its limit while it streams in, before it fills anything.

    Args:
        max_bytes: of a body, unless its dialect says otherwise.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, dialects: Dialects) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Unread(scope, receive, send)
        receive, send = exchange.receive, exchange.send
        dialect = self._dialects.of(scope)
        limit = shown = self._max_bytes
        if scope["path"] in dialect.large_bodies:
            shown = dialect.large_bodies[scope["path"]]
            limit = shown + _MULTIPART_EXTRA_BYTES
        refusal = dialect.shape(
            Fault(413, ProblemCode.TOO_LARGE, f"The request is too large: at most {shown} bytes.")
        )
        length = Headers(scope=scope).get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > limit:
            await refusal(scope, receive, send)
            return
        received = 0
        refused = started = False

        async def counted() -> Message:
            nonlocal received, refused
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    refused = True
                    return {"type": "http.disconnect"}
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if refused and not started:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, counted, guarded)
        except Exception:
            if not refused or started:
                raise
        if refused and not started:
            await refusal(scope, receive, send)
