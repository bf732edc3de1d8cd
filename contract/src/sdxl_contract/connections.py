"""Bounds on the connections to an HTTP server, between the network and the server itself.

Duty: a client that connects and says nothing, little, or far too much, or reads no answer, is let
go; one address cannot take all the descriptors there are. Where room is needed, whoever has waited
longest without asking for anything goes first, so that a new caller is served.
Must not know: HTTP but that a request's head comes first; which server it stands before. That
keeps the request at hand in an attribute `cycle`, as uvicorn's protocols do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

_LOG_SECONDS = 60.0
_CLOSED = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSED
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _CLOSED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionLimits:
    """What a client may hold open.

    Attributes:
        per_address: connections of one address (of IPv6 a /64 network) at a time.
        total: connections at a time.
        head_seconds: within which a request's head must come.
        head_bytes: of a request's head.
        unread_seconds: that an answer may wait for its client to read on.
    """

    per_address: int
    total: int
    head_seconds: float
    head_bytes: int = 64 * 1024
    unread_seconds: float = 60.0


@dataclass
class ConnectionGuard:
    """Counts a server's connections; `protocol` is what the server makes for each."""

    limits: ConnectionLimits
    make: Callable[..., asyncio.Protocol]
    _open: dict[str, dict[_Connection, None]] = field(default_factory=dict, init=False)
    _count: int = field(default=0, init=False)
    _logged_at: float = field(default=float("-inf"), init=False)
    _closed: int = field(default=0, init=False)

    def protocol(self, *arguments: Any, **named: Any) -> asyncio.Protocol:
        """A guarded protocol around one that `make` makes."""
        return _Connection(self, self.make(*arguments, **named))

    def admit(self, connection: _Connection) -> bool:
        """Count a connection in, making room where there is none; whether it may stay."""
        address = connection.address
        mine = self._open.get(address, {})
        if len(mine) >= self.limits.per_address and not self._make_room(mine):
            return False
        if self._count >= self.limits.total and not (
            self._make_room(mine) or any(self._make_room(some) for some in self._fullest())
        ):
            return False
        self._open.setdefault(address, {})[connection] = None
        self._count += 1
        return True

    def leave(self, connection: _Connection) -> None:
        """Count a connection out."""
        mine = self._open.get(connection.address, {})
        if connection in mine:
            del mine[connection]
            self._count -= 1
            if not mine:
                del self._open[connection.address]

    def note(self, why: str) -> None:
        """Log that connections were closed, once in a while."""
        self._closed += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            log.warning("closed %d connections; the last one: %s", self._closed, why)
            self._logged_at, self._closed = now, 0

    def _fullest(self) -> list[dict[_Connection, None]]:
        return sorted(self._open.values(), key=len, reverse=True)[:8]

    def _make_room(self, some: dict[_Connection, None]) -> bool:
        for connection in some:
            if connection.is_waiting:
                connection.close_at_once("others need its place, and it asks for nothing")
                return True
        return False


class _Connection(asyncio.Protocol):
    """One connection, its server's protocol behind it."""

    def __init__(self, guard: ConnectionGuard, inner: asyncio.Protocol) -> None:
        self._guard = guard
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._admitted = False
        self.address = ""

    @property
    def is_waiting(self) -> bool:
        """Whether no request of it is being answered."""
        cycle = getattr(self._inner, "cycle", None)
        return cycle is None or bool(cycle.response_complete)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it, and wait for a request's head."""
        # Of another event loop (uvloop) it is one by its methods alone.
        self._transport = cast(asyncio.Transport, transport)
        self.address = _network(transport.get_extra_info("peername"))
        if not self._guard.admit(self):
            self._guard.note("its address has too many that are being answered")
            self._transport.abort()
            return
        self._admitted = True
        self._inner.connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, those of a request's head counted."""
        if not self._admitted:
            return
        before = getattr(self._inner, "cycle", None)
        if self.is_waiting:
            self._head_bytes += len(data)
            if self._head is None:
                self._expect_head()
        self._inner.data_received(data)
        if getattr(self._inner, "cycle", None) is not before:
            self._head_bytes = 0
            self._stop(self._head)
            self._head = None
        elif self._head_bytes > self._guard.limits.head_bytes:
            self._refuse(_TOO_LARGE, "its request's head is too large")

    def eof_received(self) -> bool | None:
        """Nothing more will come."""
        return self._inner.eof_received() if self._admitted else None

    def pause_writing(self) -> None:
        """Its client does not read what is sent."""
        self._inner.pause_writing()
        if self._unread is None:
            self._unread = asyncio.get_running_loop().call_later(
                self._guard.limits.unread_seconds,
                self.close_at_once,
                "it does not read its answer",
            )

    def resume_writing(self) -> None:
        """It does again."""
        self._stop(self._unread)
        self._unread = None
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Count it out."""
        self._stop(self._head)
        self._stop(self._unread)
        self._guard.leave(self)
        if self._admitted:
            self._inner.connection_lost(error)

    def close_at_once(self, why: str) -> None:
        """End it without a word."""
        self._guard.note(why)
        self._guard.leave(self)  # its place is free now, not when the event loop comes to it
        if self._transport is not None:
            self._transport.abort()

    def _expect_head(self) -> None:
        self._head = asyncio.get_running_loop().call_later(
            self._guard.limits.head_seconds, self._late
        )

    def _late(self) -> None:
        self._head = None
        if not self.is_waiting:
            return
        if self._head_bytes:
            self._refuse(_TIMEOUT, "its request's head did not come in time")
        else:
            self.close_at_once("it asked for nothing")

    def _refuse(self, answer: bytes, why: str) -> None:
        self._guard.note(why)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
            self._transport.close()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def _network(peer: object) -> str:
    """What counts as one address: an IPv4 address, or the /64 that an IPv6 one is of."""
    host = peer[0] if isinstance(peer, tuple) and peer else ""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(str(host).partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            mapped = address.ipv4_mapped
            return str(mapped) if mapped else address.packed[:8].hex()
    return str(host)


def descriptors_for_connections(reserve: int = 256) -> int:
    """How many connections this process can hold, its limit raised as far as it may be.

    Args:
        reserve: descriptors for all else: files, databases, other servers.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 16_384
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16_384 if hard == resource.RLIM_INFINITY else min(hard, 16_384)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = 16_384 if soft == resource.RLIM_INFINITY else soft
    return max(16, most - min(reserve, most // 2))
