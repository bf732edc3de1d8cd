"""One HTTP exchange over a blocking socket, on threads: bytes go from the kernel to where they are
kept while nobody holds the interpreter's lock.

Duty: connect to an address, send one request, give the answer's head, then its body piece by piece;
whoever is cancelled meanwhile wakes the thread, which ends with it. HTTP itself is `http.client`'s.
Must not know: which addresses are allowed, what is fetched or stored.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from sdxl_worker.fetching.addresses import IPAddress

T = TypeVar("T")
_CONNECT_S = 10.0
_READ_S = 15.0
# Read at once, into memory that is taken for it: an encrypted connection has a quarter of it each
# time, and with four times as much room took twice as long.
_READ_BYTES = 1 << 16
# What comes slowly is given on after this long, to whoever watches how fast it comes.
_TURN_S = 0.05


class ExchangeFailed(Exception):
    """The other side could not be reached, broke off, or speaks no HTTP; the message is the kind of
    error, and names nobody."""


class ExchangeTimedOut(ExchangeFailed):
    """The other side said nothing for too long."""


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        target: path and query, as they are sent.
        tls_name: whose certificate the other side must show; None is plain HTTP.
        content: the body; none if None.
    """

    method: str
    address: IPAddress
    port: int
    target: str
    headers: Mapping[str, str]
    tls_name: str | None
    content: bytes | None


class Exchange:
    """One request and its answer. One caller, on one event loop, who closes it.

    Args:
        threads: where it blocks.
        tls: of connections that are encrypted.

    Attributes:
        status: of the answer, once it was asked for.
        peer: the address at the other end, likewise.
    """

    def __init__(self, threads: Executor, tls: Callable[[], ssl.SSLContext]) -> None:
        self._threads = threads
        self._tls = tls
        self._socket: socket.socket | None = None
        self._answer: http.client.HTTPResponse | None = None
        self._busy: Future[object] | None = None
        self._is_given_up = False
        self.status = 0
        self.peer = ""

    async def ask(self, asked: Asked) -> None:
        """Send the request and wait for the answer's head.

        Raises:
            ExchangeFailed: there is none.
        """
        await self._on_a_thread(lambda: self._ask(asked))

    @property
    def length(self) -> int | None:
        """Bytes of the body that are still to come, as the answer says; None where it does not."""
        assert self._answer is not None
        return self._answer.length

    def header(self, name: str) -> str:
        """Of the answer; "" where it has none."""
        assert self._answer is not None
        return self._answer.headers.get(name) or ""

    async def fill(self, view: memoryview) -> int:
        """The body's next bytes, into `view`; how many, 0 only at the end (or for an empty view).

        Raises:
            ExchangeFailed: it broke off.
        """
        return await self._on_a_thread(lambda: self._fill(view))

    async def read(self, most: int) -> bytes:
        """The rest of the body, at most `most` bytes of it.

        Raises:
            ExchangeFailed: it broke off.
        """
        view = memoryview(bytearray(most))
        count = 0
        while got := await self.fill(view[count:]):
            count += got
        return bytes(view[:count])

    def close(self) -> None:
        """End it, wherever it is."""
        if self._busy is None or self._busy.done():
            self._let_go()
            return
        self._give_up()
        self._busy.add_done_callback(lambda _: self._let_go())

    async def _on_a_thread(self, work: Callable[[], T]) -> T:
        busy: Future[T] = self._threads.submit(work)
        self._busy = busy  # type: ignore[assignment]
        try:
            return await asyncio.wrap_future(busy)
        except asyncio.CancelledError:
            self._give_up()
            raise
        except TimeoutError as error:
            raise ExchangeTimedOut(type(error).__name__) from error
        # ValueError: what http.client says of some lines that are none.
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ExchangeFailed(type(error).__name__) from error

    def _give_up(self) -> None:
        """Wake the thread that waits for the other side."""
        self._is_given_up = True
        if self._socket is not None:
            with suppress(OSError):
                # The socket's own: an encrypted one would forget its keys, which a thread uses.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _let_go(self) -> None:
        if self._answer is not None:
            self._answer.close()
        if self._socket is not None:
            self._socket.close()

    def _ask(self, asked: Asked) -> None:
        family = socket.AF_INET6 if asked.address.version == 6 else socket.AF_INET
        self._socket = plain = socket.socket(family, socket.SOCK_STREAM)
        plain.settimeout(_CONNECT_S)
        plain.connect((str(asked.address), asked.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = str(plain.getpeername()[0])
        if asked.tls_name is not None:
            encrypted = self._tls().wrap_socket(
                plain, server_hostname=asked.tls_name, do_handshake_on_connect=False
            )
            self._socket = encrypted
            encrypted.do_handshake()
        if self._is_given_up:
            raise ConnectionAbortedError
        connection = http.client.HTTPConnection(str(asked.address), asked.port)
        connection.sock = self._socket
        # None: what is sent takes as long as it takes; its deadline is the caller's.
        self._socket.settimeout(None if asked.content is not None else _READ_S)
        connection.putrequest(asked.method, asked.target, skip_host=True, skip_accept_encoding=True)
        for name, value in asked.headers.items():
            connection.putheader(name, value)
        # Who refuses a body often answers before all of it was sent.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(asked.content)
        self._socket.settimeout(_READ_S)
        self._answer = connection.getresponse()
        self.status = self._answer.status

    def _fill(self, view: memoryview) -> int:
        assert self._answer is not None
        count, until = 0, time.monotonic() + _TURN_S
        while count < len(view) and not self._is_given_up:
            piece = self._answer.read1(min(len(view) - count, _READ_BYTES))
            if not piece:
                break
            view[count : count + len(piece)] = piece
            count += len(piece)
            if time.monotonic() > until:
                break
        return count
