"""A client that holds a connection without using it is let go, and keeps nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sdxl_contract.connections import (
    ConnectionGuard,
    ConnectionLimits,
    _network,
    descriptors_for_connections,
)

pytestmark = pytest.mark.process


QUICK = ConnectionLimits(per_address=20, total=40, head_seconds=0.5, unread_seconds=0.5)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """uvicorn behind a guard; `release` lets the answers to /slow go."""

    def __init__(self, guard: ConnectionGuard) -> None:
        self.guard = guard
        self.release = asyncio.Event()
        self.port = 0
        self.opened: list[asyncio.StreamWriter] = []

    async def app(self, scope: dict[str, str], receive: object, send: object) -> None:
        assert callable(send)
        if scope["type"] != "http":
            return
        if scope["path"] == "/slow":
            await self.release.wait()
        body = b"x" * (50_000_000 if scope["path"] == "/large" else 2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def connect(self, data: bytes = b"") -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1024)
        self.opened.append(writer)
        writer.write(data)
        return reader, writer

    async def ask(self) -> bytes:
        """The first line of an answer; empty where the connection was closed."""
        try:
            reader, _ = await self.connect(GET)
            return await asyncio.wait_for(reader.readline(), 5)
        except ConnectionError:
            return b""


@contextlib.asynccontextmanager
async def running(protocol: type[asyncio.Protocol]) -> AsyncIterator[Server]:
    made = Server(ConnectionGuard(QUICK, protocol))
    config = uvicorn.Config(
        made.app,
        port=0,
        interface="asgi3",
        http=made.guard.protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    served = uvicorn.Server(config)
    served.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(served.serve())
    while not served.started:
        await asyncio.sleep(0.01)
    made.port = served.servers[0].sockets[0].getsockname()[1]
    yield made
    made.release.set()
    for writer in made.opened:
        writer.close()
    served.should_exit = True
    await task


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with running(request.param) as made:
        yield made


async def gone(stream: Stream, seconds: float = 30) -> bytes:
    """What the server sent before it closed."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(stream[0].read(500), seconds)
    return b""


async def test_a_request_is_answered_also_the_second_on_its_connection(server: Server) -> None:
    reader, writer = await server.connect(GET)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert b"xx" in await reader.read(100)
    await asyncio.sleep(0.7)  # longer than a head may take: a kept connection may be silent
    writer.write(GET)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
async def test_a_head_that_does_not_come_ends_its_connection(server: Server, begun: bytes) -> None:
    answer = await gone(await server.connect(begun))
    assert answer == b"" if not begun else answer.startswith(b"HTTP/1.1 408")


async def test_a_second_head_that_trickles_ends_its_connection_too(server: Server) -> None:
    reader, writer = await server.connect(GET)
    await reader.readuntil(b"0\r\n\r\n")
    closed = asyncio.ensure_future(gone((reader, writer)))
    writer.write(b"GET / HTTP/1.1\r\nA: ")
    while not closed.done():
        writer.write(b"a")
        await asyncio.sleep(0.1)
    assert (await closed)[:12] in (b"HTTP/1.1 408", b"")


async def test_a_head_without_end_is_refused(server: Server) -> None:
    stream = await server.connect(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 30_000)
    assert (await gone(stream)).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


async def test_half_requests_of_its_own_address_do_not_keep_a_caller_out(server: Server) -> None:
    idle = [await server.connect(b"GET / HTTP/1.1\r\n") for _ in range(60)]
    assert (await server.ask()).startswith(b"HTTP/1.1 200")
    assert server.guard._count <= QUICK.per_address
    assert await gone(idle[0]) == b"", "the oldest made room"


async def test_requests_that_are_being_answered_are_not_closed_for_newer_ones(
    server: Server,
) -> None:
    busy = [
        await server.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(QUICK.per_address)
    ]
    await asyncio.sleep(0.7)
    assert await server.ask() == b""
    server.release.set()
    for reader, _ in busy:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert (await server.ask()).startswith(b"HTTP/1.1 200")


async def test_an_answer_that_nobody_reads_is_not_kept(server: Server) -> None:
    await server.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in range(1000):
        await asyncio.sleep(0.05)
        if server.guard._count == 0:
            return
    raise AssertionError("it is still there")


async def test_all_is_counted_out_again(server: Server) -> None:
    for _ in range(30):
        await server.connect(b"x")
    for writer in server.opened:
        writer.close()
    await asyncio.sleep(0.3)
    assert server.guard._count == 0
    assert server.guard._open == {}


def test_an_ipv6_network_counts_as_one_address() -> None:
    assert _network(("2001:db8:1:2::1", 1, 0, 0)) == _network(
        ("2001:db8:1:2:ffff::9%eth0", 2, 0, 0)
    )
    assert _network(("2001:db8:1:3::1", 1, 0, 0)) != _network(("2001:db8:1:2::1", 1, 0, 0))
    assert _network(("::ffff:10.0.0.1", 1, 0, 0)) == _network(("10.0.0.1", 1)) == "10.0.0.1"
    assert _network("") == _network(None) == ""
    assert descriptors_for_connections() >= 16


def test_it_stands_before_a_server_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def ask_twice_and_let_one_go() -> list[bytes]:
        async with running(HttpToolsProtocol) as server:
            answers = [await server.ask(), await server.ask()]
            answers.append(await gone(await server.connect(b"GET / HTTP/1.1\r\n")))
            return answers

    first, second, late = uvloop.run(ask_twice_and_let_one_go())
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")
    assert late.startswith(b"HTTP/1.1 408")
