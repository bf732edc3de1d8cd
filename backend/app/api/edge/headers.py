"""Headers that every answer has, and those of a request that nobody could read.

Must not know: routes.
"""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.dialect import Dialects
from app.core.errors import Fault

# RFC 3986's host, with underscores as names of containers have them.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])?(?::\d{0,5})?")


class PlainHeaders:
    """Refuses a call whose Host nobody could read; no answer is kept or guessed at unasked."""

    def __init__(self, app: ASGIApp, *, dialects: Dialects) -> None:
        self._app = app
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, unless its Host is malformed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1 or not all(_HOST.fullmatch(host) for host in hosts):
            fault = Fault(
                400,
                "INVALID_REQUEST",
                "Host: must be one name or address, perhaps with a port.",
                field="Host",
            )
            await self._dialects.of(scope).shape(fault)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)
