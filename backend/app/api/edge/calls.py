"""What happens around every call: one log line, and the key asked for before an upload is read.

Plain ASGI: Starlette's own wrapper for functions costs about a millisecond a call.
Must not know: what the routes do.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import get_caller
from app.core.db import DATABASE_LOST
from app.core.dialect import dialect_of
from app.core.errors import BackendError, RateLimited, fault_of
from app.core.tracing import continued
from app.models.base import utc_now
from sdxl_contract.errors import ContractError

_UPLOAD_RETRY_SECONDS = 5

log = structlog.get_logger("app.main")


class RequestLog:
    """One line per request: its path without the query, its status, its milliseconds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, in the caller's trace if it names one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(http_request=uuid.uuid4().hex[:12])
        started = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with continued(_header(scope, b"traceparent")):
                await self._app(scope, receive, noting)
        finally:
            if not scope["path"].startswith(("/health/", "/metrics")):
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(1000 * (time.perf_counter() - started), 1),
                )


class KeyBeforeUpload:
    """Asks for the key before a large body streams in: the framework reads a form first."""

    def __init__(self, app: ASGIApp, *, at_once: int) -> None:
        self._app = app
        self._at_once = at_once
        self._uploading: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, unless it is an upload by nobody."""
        if scope["type"] == "http" and scope["method"] == "POST":
            dialect = dialect_of(scope)
            if scope["path"] in dialect.key_first:
                request = Request(scope, receive)
                try:
                    caller = await get_caller(request, request.app.state.services)
                    place = self._place(caller.counted_as)
                except (ContractError, BackendError) as error:
                    await dialect.shape(fault_of(error))(scope, receive, send)
                    return
                except DATABASE_LOST:
                    pass  # the route meets the same, and says so
                else:
                    with place:
                        await self._app(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _place(self, caller: str) -> contextlib.AbstractContextManager[None]:
        """A place for one more upload, unless its caller has enough: each fills the disk."""
        if self._uploading[caller] >= self._at_once:
            raise RateLimited(
                f"This key sends {self._at_once} files already: wait until one has arrived.",
                free_at=utc_now() + timedelta(seconds=_UPLOAD_RETRY_SECONDS),
                retry_after=_UPLOAD_RETRY_SECONDS,
            )
        self._uploading[caller] += 1
        return self._held(caller)

    @contextlib.contextmanager
    def _held(self, caller: str) -> Iterator[None]:
        try:
            yield
        finally:
            self._uploading[caller] -= 1
            if not self._uploading[caller]:
                del self._uploading[caller]


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None
