"""`/fal/proxy`: fal's JavaScript client sends here what it would send to fal, and where that is.

The URL in the header only chooses one of our own paths; it is never asked.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import Fault
from app.dialects.fal.errors import as_fal
from app.dialects.fal.shown import API

PATH = f"{API}/proxy"
_HEADER = "x-fal-target-url"
_FAMILIES = {"queue.fal.run": "queue", "fal.run": "run", "rest.fal.ai": "rest"}


class TargetPath:
    """Sends a proxied call on to the path that its target means."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""
        if scope["type"] == "http" and scope["path"] == PATH:
            try:
                parts = urlsplit(Headers(scope=scope).get(_HEADER, ""))
                family = _FAMILIES.get(parts.hostname or "")
            except ValueError:
                family = None
            if family is None:
                hosts = " or ".join(_FAMILIES)
                fault = Fault(
                    400, "INVALID_REQUEST", f"{_HEADER}: must be a URL of {hosts}", field=_HEADER
                )
                await as_fal(fault)(scope, receive, send)
                return
            path = f"{API}/{family}{parts.path}"
            scope = {
                **scope,
                "path": path,
                "raw_path": path.encode(),
                "query_string": parts.query.encode(),
            }
        await self._app(scope, receive, send)
