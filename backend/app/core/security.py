"""API keys, and what guards a server that needs none.

Duty: make and recognise keys; bound a request's bytes; keep pages of other sites away.
Must not know: tables and routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.dialect import Dialects
from app.core.errors import Fault, ProblemCode

SESSION_COOKIE = "studio_session"
# What a page of ours sends with each change: no page of another site can add it unasked.
PAGE_HEADER, PAGE_HEADER_VALUE = "X-Requested-With", "studio"
_KEY_PREFIX = "sdxl_"
_MULTIPART_EXTRA_BYTES = 256 * 1024  # a form's other fields and its boundaries
# What is read of a request that has been answered already.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 2**20


def new_api_key() -> str:
    """32 random bytes as text; shown once, never stored."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def new_session_token() -> str:
    """32 random bytes as text: a page's cookie; never stored."""
    return secrets.token_urlsafe(32)


def key_digest(key: str) -> str:
    """SHA-256 of a key or a cookie: what is stored. It is random: a slow hash adds nothing."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def same_digest(left: str, right: str) -> bool:
    """Equality in constant time."""
    return hmac.compare_digest(left.encode(), right.encode())


def is_loopback_name(host: str | None) -> bool:
    """Whether a Host header's name is this computer's own."""
    if not host:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_foreign_page(headers: Headers, base_url: str) -> bool:
    """Whether a web page of another site seems to be asking, in a server that needs no key.

    Such a page can reach loopback from the user's own browser: by a form (its Origin is foreign)
    or by a name that it makes resolve to 127.0.0.1 (its Host is foreign).
    """
    own = urlsplit(base_url).netloc.lower()
    named = [f"//{headers.get('host', '')}", *headers.getlist("origin")]
    return not all(_is_own(place, own) for place in named)


def _is_own(place: str, own: str) -> bool:
    """Whether a URL names this computer, or the server by the name that others know it by."""
    try:
        url = urlsplit(place)
        url.port  # noqa: B018  # a ValueError where it is none
        return is_loopback_name(url.hostname) or url.netloc.lower() == own
    except ValueError:  # nobody could read it
        return False


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
