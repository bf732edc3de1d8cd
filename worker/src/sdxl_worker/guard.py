"""What stands before every call: web pages are kept out where there is no token, and every answer
says how it may be read.

A worker without a token listens on this computer only, where every page in the user's browser could
still reach it: by a form or a script (it says where it comes from), or by a name of its own that it
makes resolve to 127.0.0.1 (its Host is foreign). The worker has no page of its own, so that whoever
comes from one is a stranger.
Must not know: what the routes do.
"""

from __future__ import annotations

import hmac
import ipaddress
import re

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdxl_contract.errors import ContractError, InvalidRequest, Unauthorized

_HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::\d{1,5})?"
)
_OWN_SITES = frozenset({"none", "same-origin"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class TokenGuard:
    """Who may ask: whoever has the token; where there is none, every program on this computer."""

    def __init__(self, token: SecretStr | None) -> None:
        self._expected = None if token is None else f"Bearer {token.get_secret_value()}".encode()

    def has_token(self, request: Request) -> bool:
        """Whether the caller proved to have the token; no where there is none to have."""
        given = request.headers.get("authorization", "").encode("utf-8", "replace")
        return self._expected is not None and hmac.compare_digest(given, self._expected)

    def refuse_pages(self, request: Request) -> None:
        """What is open to everybody is still not open to web pages where there is no token.

        Raises:
            InvalidRequest: see `refuse_pages`.
        """
        if self._expected is None:
            refuse_pages(request.headers, has_body=False)

    def authorise(self, request: Request, *, has_body: bool = False) -> None:
        """Refuse who has no right to ask.

        Raises:
            Unauthorized: the token is missing or wrong.
            InvalidRequest: there is none, and the call may be a web page's.
        """
        if self._expected is None:
            refuse_pages(request.headers, has_body=has_body)
        elif not self.has_token(request):
            raise Unauthorized("the bearer token is missing or wrong")


def refuse_pages(headers: Headers, *, has_body: bool) -> None:
    """Refuse what a web page, or a name that is not this computer's, may have sent.

    Raises:
        InvalidRequest: 400, 403 or 415; `details["field"]` names the header.
    """
    host = _HOST.fullmatch(headers.get("host", ""))
    if host is None:
        raise _refused("Host", "is missing or is no host name", 400)
    if not _is_loopback(host["six"] or host["name"]):
        raise _refused("Host", "is not this computer's own name", 403)
    if "origin" in headers:
        raise _refused("Origin", "is a web page's", 403)
    if headers.get("sec-fetch-site", "none") not in _OWN_SITES:
        raise _refused("Sec-Fetch-Site", "is another site's", 403)
    # Left out it is a program's: a page that leaves it out says where it comes from.
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if has_body and kind != "application/json":
        raise _refused("Content-Type", "must be application/json", 415)


def _is_loopback(name: str) -> bool:
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refused(field: str, why: str, status: int) -> ContractError:
    return InvalidRequest(
        f"{field} {why}: a worker without WORKER_API_TOKEN answers programs on this computer only",
        details={"field": field},
        status=status,
    )


class AnswerHeaders:
    """Adds to every answer what keeps browsers from guessing its kind, storing or framing it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on; headers that a route sets itself stay."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, adding)
