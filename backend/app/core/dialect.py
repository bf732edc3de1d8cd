"""How a family of paths speaks: its credentials, its errors' shape, its largest bodies.

Duty: find a path's dialect before any route is chosen, so that whatever answers keeps to it.
Must not know: what the dialects' routes do.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from app.core.errors import Shape, as_problem

_KEY_MAX_CHARS = 1024


@dataclass(frozen=True)
class Dialect:
    """What holds for every path below `prefix`.

    Args:
        schemes: of `Authorization`, in lower case, that carry an API key here.
        key_headers: other headers that may hold the key by itself.
        takes_cookie: whether a page's session counts as a credential.
        any_key_while_open: before the first key is made, what is sent as a key is not looked at:
            for clients that cannot leave theirs out.
        shape: of every error.
        large_bodies: bytes that a path's body may have, where it is more than usual.
        key_first: paths whose key is asked for before the body is read.
        polled: paths whose GETs count towards no rate of calls: clients repeat them all the time.
    """

    prefix: str
    schemes: frozenset[str] = frozenset({"bearer"})
    key_headers: tuple[str, ...] = ()
    takes_cookie: bool = False
    any_key_while_open: bool = True
    shape: Shape = as_problem
    large_bodies: Mapping[str, int] = field(default_factory=dict)
    key_first: frozenset[str] = frozenset()
    polled: re.Pattern[str] | None = None

    def covers(self, path: str) -> bool:
        """Whether `path` is one of this dialect's."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")

    def is_poll(self, scope: Scope) -> bool:
        """Whether a call is one of those that clients repeat until a content has ended."""
        return (
            self.polled is not None
            and scope["method"] == "GET"
            and self.polled.fullmatch(scope["path"]) is not None
        )

    def api_key(self, headers: Headers) -> str | None:
        """What a call sends as its API key; None where it sends none."""
        scheme, _, value = headers.get("authorization", "").strip().partition(" ")
        value = value.strip()
        if value and scheme.lower() in self.schemes:
            return (basic_key(value) if scheme.lower() == "basic" else value) or None
        for name in self.key_headers:
            if headers.get(name):
                return headers[name].strip() or None
        return None


def basic_key(encoded: str) -> str | None:
    """The key in a `Basic` credential: the password, or the user's name where that is empty."""
    if len(encoded) > _KEY_MAX_CHARS:
        return encoded  # no key of ours is as long: it is refused as a wrong one
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return encoded
    return password or user or None


class Dialects:
    """The dialects of one app; paths of no other's are the API's own."""

    def __init__(self, own: Dialect, others: tuple[Dialect, ...] = ()) -> None:
        self.own = own
        self.others = others

    def of(self, scope: Scope) -> Dialect:
        """The dialect of a call's path."""
        path = scope["path"]
        return next((dialect for dialect in self.others if dialect.covers(path)), self.own)


def dialect_of(scope: Scope) -> Dialect:
    """The dialect of a call to an app that has `state.dialects`."""
    dialects: Dialects = scope["app"].state.dialects
    return dialects.of(scope)
