"""Exchanges on threads: encrypted ones, odd answers, and threads that end with their callers."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sdxl_contract.errors import LoraDownloadFailed
from sdxl_worker.fetching import connection
from sdxl_worker.fetching.connection import Connections
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.fetching.exchange import Asked, Exchange
from testkit.clients.certificates import own_certificate
from testkit.worker import FileServer

pytestmark = pytest.mark.process

NAME = "loras.example"
DATA = random.Random(3).randbytes((5 << 20) + 7)
POLICY = FetchPolicy(max_bytes=1 << 24, timeout_s=20, allow_loopback=True)
Serve = Callable[[socket.socket], None]


async def at_home(host: str, port: int) -> list[str]:
    """A name server that knows this computer alone."""
    return ["127.0.0.1"]


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    made = Fetcher(POLICY, at_home)
    yield made
    await made.aclose()


@contextmanager
def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that does with each connection what `serve` says; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

        def one(connected: socket.socket) -> None:
            with suppress(OSError), connected:
                if tls is None:
                    serve(connected)
                    return
                with tls.wrap_socket(connected, server_side=True) as encrypted:
                    serve(encrypted)

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def sends(*parts: bytes) -> Serve:
    def serve(connected: socket.socket) -> None:
        connected.recv(65536)
        for part in parts:
            connected.sendall(part)

    return serve


def whole(data: bytes) -> Serve:
    return sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data), data)


async def reason(fetching: Fetcher, url: str) -> str:
    with pytest.raises(LoraDownloadFailed) as refusal:
        await fetching.download(url)
    assert "secret" not in refusal.value.body().model_dump_json()
    return str((refusal.value.details or {})["reason"])


# --- encrypted ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_certificate(tmp_path_factory.mktemp("tls"), NAME)


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate)
    return made


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr(connection, "_tls", lambda: context)


async def test_an_encrypted_file_arrives_whole_and_the_server_hears_its_name(
    fetcher: Fetcher, server_tls: ssl.SSLContext, trusted: None
) -> None:
    heard: list[str | None] = []
    server_tls.sni_callback = lambda _, name, __: heard.append(name)
    with listening(whole(DATA), server_tls) as port:
        fetched = await fetcher.download(f"https://{NAME}:{port}/x?secret")
    assert fetched is not None
    assert bytes(fetched.data) == DATA
    assert heard == [NAME]


async def test_a_certificate_of_another_name_or_of_nobody_is_refused(
    fetcher: Fetcher,
    server_tls: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[bytes] = []
    with listening(lambda connected: heard.append(connected.recv(99)), server_tls) as port:
        url = f"https://{NAME}:{port}/x?secret"
        assert await reason(fetcher, url) == "unreachable"  # nobody's, as far as the system knows
        context = ssl.create_default_context(cafile=certificate)
        monkeypatch.setattr(connection, "_tls", lambda: context)
        assert await reason(fetcher, url.replace(NAME, "other.example")) == "unreachable"
        assert await reason(fetcher, url.replace("https", "http")) == "unreachable"
    assert not [one for one in heard if one]


# --- odd answers ----------------------------------------------------------------------------------


async def test_a_file_in_chunks_arrives_whole(fetcher: Fetcher) -> None:
    parts = [DATA[at : at + 70_001] for at in range(0, len(DATA), 70_001)]
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with listening(sends(head, *chunks, b"0\r\n\r\n")) as port:
        fetched = await fetcher.download(f"http://{NAME}:{port}/x")
        assert fetched is not None
        assert bytes(fetched.data) == DATA
    with listening(sends(head, chunks[0], chunks[1][:99])) as port:
        assert await reason(fetcher, f"http://{NAME}:{port}/x?secret") == "unreachable"


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00" * 1000,
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a number\r\nxyz",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 100_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"",
    ],
    ids=["ssh", "zeros", "status", "headers", "line", "chunk", "long chunk", "continue", "nothing"],
)
async def test_what_is_no_http_is_unreachable(fetcher: Fetcher, head: bytes) -> None:
    with listening(sends(head)) as port:
        assert await reason(fetcher, f"http://{NAME}:{port}/x?secret") == "unreachable"


@pytest.mark.parametrize("length", [b"-5", b"5, 5", b"0x5", b"nonsense", b""])
async def test_a_length_that_is_none_is_not_believed(fetcher: Fetcher, length: bytes) -> None:
    with listening(sends(b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\nabcde" % length)) as port:
        fetched = await fetcher.download(f"http://{NAME}:{port}/x")
    assert fetched is not None
    assert bytes(fetched.data) == b"abcde"


async def test_a_server_that_refuses_an_upload_before_its_end_is_heard(fetcher: Fetcher) -> None:
    def refuse(connected: socket.socket) -> None:
        connected.recv(10)
        connected.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        connected.shutdown(socket.SHUT_WR)
        while connected.recv(1 << 16):
            pass

    with listening(refuse) as port, pytest.raises(LoraDownloadFailed) as refusal:
        await fetcher.upload(f"http://{NAME}:{port}/x?secret", DATA, "image/png")
    assert "status 413" in refusal.value.message


# --- threads --------------------------------------------------------------------------------------


async def test_nothing_of_a_body_is_read_on_the_thread_that_answers_others(
    fetcher: Fetcher, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read1, threads = http.client.HTTPResponse.read1, set()

    def noted(self: Any, most: int = -1) -> bytes:
        threads.add(threading.get_ident())
        return read1(self, most)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", noted)
    assert await fetcher.download(files.add(DATA)) is not None
    assert threads
    assert threading.get_ident() not in threads


def silent_after(head: bytes) -> Serve:
    """Says `head`, and no more until the other side goes."""

    def serve(connected: socket.socket) -> None:
        if head:
            connected.recv(65536)
            connected.sendall(head)
        while connected.recv(65536):
            pass

    return serve


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\nabc"],
    ids=["request", "headers", "body"],
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_a_thread_ends_with_whoever_wanted_it(
    fetcher: Fetcher,
    server_tls: ssl.SSLContext,
    trusted: None,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
    encrypted: bool,
) -> None:
    made: list[Exchange] = []

    def noting(*args: Any) -> Exchange:
        made.append(Exchange(*args))
        return made[-1]

    monkeypatch.setattr(connection, "Exchange", noting)
    scheme, tls = ("https", server_tls) if encrypted else ("http", None)
    with listening(silent_after(head), tls) as port:
        task = asyncio.create_task(fetcher.download(f"{scheme}://{NAME}:{port}/x"))
        await asyncio.sleep(0.3)
        busy = made[0]._busy
        assert busy is not None
        assert not busy.done()  # the control: it waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(200):
            if busy.done():
                break
            await asyncio.sleep(0.01)
        assert busy.done()
    held = made[0]._socket
    assert held is not None
    assert held.fileno() == -1


async def test_a_thread_that_connects_to_nobody_is_waited_for_by_none() -> None:
    """Where nothing answers at all, a caller that goes does not wait for the connection."""
    with socket.socket() as full, ThreadPoolExecutor(1) as threads:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for one in fillers:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        exchange = Exchange(threads, ssl.create_default_context)
        asked = Asked(
            "GET", ipaddress.ip_address("127.0.0.1"), full.getsockname()[1], "/", {}, None, None
        )
        task = asyncio.create_task(exchange.ask(asked))
        await asyncio.sleep(0.2)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        exchange.close()
        for one in fillers:
            one.close()


async def test_after_the_end_nothing_begins(files: FileServer) -> None:
    connections = Connections(allow_loopback=True, allowed_hosts=(), resolver=at_home)
    place = connections.look_at(files.add(b"x"))
    address = await connections.address(place)
    connections.close()
    with pytest.raises(RuntimeError):
        async with connections.open("GET", place, address, {}):
            pass
