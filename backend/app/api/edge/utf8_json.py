"""JSON is UTF-8 without a mark in front (RFC 8259), here as at the worker.

The framework's reader would take UTF-16 and UTF-32 too, and pass a mark over: then one body would
be two things to two readers.
Must not know: routes.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.dialect import Dialects
from app.core.errors import Fault

_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def is_utf8_json(beginning: bytes) -> bool:
    """Whether a body that begins so can be JSON in UTF-8; four bytes decide."""
    return not beginning.startswith(_MARKS) and b"\x00" not in beginning[:4]


class Utf8Json:
    """Refuses a JSON body in another encoding before it is read whole."""

    def __init__(self, app: ASGIApp, *, dialects: Dialects) -> None:
        self._app = app
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, its body's beginning looked at."""
        media_type = ""
        if scope["type"] == "http":
            media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip()
        if not media_type.lower().endswith(("/json", "+json")):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        last: Message = {"type": "http.request", "body": b"", "more_body": False}
        while more and len(body) < 4:
            last = await receive()
            body += last.get("body", b"")
            more = last["type"] == "http.request" and last.get("more_body", False)
        if not is_utf8_json(body):
            fault = Fault(
                422,
                "INVALID_REQUEST",
                "request: must be a JSON object in UTF-8, without a byte order mark",
                field="request",
                details={"field": "request"},
            )
            await self._dialects.of(scope).shape(fault)(scope, receive, send)
            return
        first: Message | None = {**last, "body": body} if last["type"] == "http.request" else last

        async def again() -> Message:
            nonlocal first
            if first is not None:
                message, first = first, None
                return message
            return await receive()

        await self._app(scope, again, send)
