"""A LoRA's bytes from a server on this machine: the worker's way beside an asynchronous client's.

The peer reads with httpx2 and hashes what comes, on the event loop, as services usually do. Each
row: the time until all bytes are there and hashed, and what of it the event loop's thread was busy,
in which nobody else is answered. By turns, in one process; the server is another one.
Must not know: LoRAs, the model.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from sdxl_worker.fetching.download import Fetcher, FetchPolicy

Rows = dict[str, Any]
Fetch = Callable[[str], Awaitable[str]]
_AT_ONCE = 4


def serve(size: int, told: Connection) -> None:
    """Answers every request with the same `size` bytes; sends its port through `told`."""
    data = memoryview(bytes(range(256)) * (size // 256 + 1))[:size]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size

    def answer(connected: socket.socket) -> None:
        with connected:
            connected.recv(1 << 16)
            connected.sendall(head)
            connected.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        told.send(server.getsockname()[1])
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


@contextmanager
def _served(size: int) -> Iterator[str]:
    # Not a fork: this process may have a GPU.
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=serve, args=(size, there), daemon=True)
    process.start()
    try:
        if not here.poll(60):
            raise RuntimeError("the server did not begin")
        yield f"http://127.0.0.1:{here.recv()}/lora"
    finally:
        process.terminate()
        process.join()


def rows(size: int, runs: int) -> Rows:
    """Milliseconds for `size` bytes alone and four times at once, ours and the peer's."""
    with _served(size) as url:
        return asyncio.run(_compared(url, size, runs))


async def _compared(url: str, size: int, runs: int) -> Rows:
    # Which the worker does not need: without it this row alone is missing.
    import httpx2

    fetcher = Fetcher(FetchPolicy(max_bytes=size, allow_loopback=True))

    async def ours(url: str) -> str:
        found = await fetcher.download(url)
        assert found is not None
        return found.sha256

    async def peer(url: str) -> str:
        held, digest = bytearray(), hashlib.sha256()
        async with (
            httpx2.AsyncClient(trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            async for piece in response.aiter_raw():
                held += piece
                digest.update(piece)
        return digest.hexdigest()

    found: Rows = {"bytes": size}
    try:
        for count, name in ((1, "alone"), (_AT_ONCE, f"{_AT_ONCE}_at_once")):
            times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
            for _ in range(runs):
                for side, fetch in (("ours", ours), ("peer", peer)):
                    times[side].append(await _timed(fetch, url, count))
            for side, measured in times.items():
                wall, busy = (statistics.median(column) for column in zip(*measured, strict=True))
                found[f"{side}_{name}_ms"] = round(wall * 1e3, 1)
                found[f"{side}_{name}_loop_ms"] = round(busy * 1e3, 1)
            found[f"peer_times_ours_{name}"] = round(
                found[f"peer_{name}_ms"] / found[f"ours_{name}_ms"], 2
            )
        found["same_hash"] = await ours(url) == await peer(url)
    finally:
        await fetcher.aclose()
    return found


async def _timed(fetch: Fetch, url: str, count: int) -> tuple[float, float]:
    started, busy = time.perf_counter(), time.thread_time()
    await asyncio.gather(*(fetch(url) for _ in range(count)))
    return time.perf_counter() - started, time.thread_time() - busy
