"""API keys, and what guards a server that needs none.

Duty: make and recognise keys; keep pages of other sites away.
Must not know: tables and routes.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers

SESSION_COOKIE = "studio_session"
# What a page of ours sends with each change: no page of another site can add it unasked.
PAGE_HEADER, PAGE_HEADER_VALUE = "X-Requested-With", "studio"
_KEY_PREFIX = "sdxl_"


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
