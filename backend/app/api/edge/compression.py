"""JSON answers with gzip, for whoever takes it.

Only JSON, whole and of some size: pictures do not shrink, and live events must not wait. An answer
that sets a cookie stays as it is. No answer holds a secret beside text that another site can
choose, but a signed URL stands beside a caller's own prompt: the header's length is varied a
little, so that lengths tell less about what compressed well.
Must not know: routes.
"""

from __future__ import annotations

import gzip
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.pools import Duty, in_pool

_SMALLEST = 1024  # bytes
_LARGE = 64 * 1024  # bytes, from which on compressing takes longer than a turn of the event loop
_LEVEL = 5
_NOISE = 32  # bytes
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json(?:;|$)")


def takes_gzip(accept_encoding: str) -> bool:
    """Whether an `Accept-Encoding` header lets gzip be sent (RFC 9110)."""
    best: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        name, *parameters = (item.strip() for item in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        best[name] = quality
    return best.get("gzip", best.get("*", 0.0)) > 0


def _compress(data: bytes) -> bytes:
    """gzip, with a file name of random length in its header: decoders pass over it."""
    packed = gzip.compress(data, _LEVEL, mtime=0)
    name = b"-" * secrets.randbelow(_NOISE) + b"\x00"
    return packed[:3] + bytes([packed[3] | 0x08]) + packed[4:10] + name + packed[10:]


class JsonGzip:
    """Compresses what a route answers in one piece."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on; its answer perhaps compressed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = takes_gzip(Headers(scope=scope).get("accept-encoding", ""))
        start: Message | None = None

        async def packing(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if _JSON.match(headers.get("content-type", "")) and (
                    "content-encoding" not in headers and "set-cookie" not in headers
                ):
                    headers.add_vary_header("Accept-Encoding")
                    if wanted and int(headers.get("content-length", "0")) >= _SMALLEST:
                        start = message
                        return
            elif start is not None and message["type"] == "http.response.body":
                held, start = start, None
                data: bytes = message.get("body", b"")
                headers = MutableHeaders(scope=held)
                if not message.get("more_body", False) and len(data) >= _SMALLEST:
                    if len(data) >= _LARGE:
                        packed = await in_pool(Duty.ANSWERS, _compress, data)
                    else:
                        packed = _compress(data)
                    headers["Content-Encoding"] = "gzip"
                    headers["Content-Length"] = str(len(packed))
                    if (etag := headers.get("etag")) and not etag.startswith("W/"):
                        headers["ETag"] = f"W/{etag}"
                    message = {**message, "body": packed}
                await send(held)
            await send(message)

        await self._app(scope, receive, packing)
