"""A file's bytes as they come: hashed beside, in one memory, whatever the pieces."""

from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from sdxl_contract.errors import LoraDownloadFailed
from sdxl_worker.fetching import body
from sdxl_worker.fetching.body import Body
from sdxl_worker.fetching.budget import ByteBudget
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from testkit.worker import FileServer


class Counted(ThreadPoolExecutor):
    """Remembers in which threads work was done."""

    def __init__(self) -> None:
        super().__init__(2)
        self.threads: list[int] = []

    def submit(self, fn: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        def work() -> Any:
            self.threads.append(threading.get_ident())
            return fn(*arguments, **named)

        return super().submit(work)


async def add(made: Body, piece: bytes) -> int:
    """As much of `piece` as there is room for comes next; how much that was."""
    room = made.room()
    count = min(len(room), len(piece))
    room[:count] = piece[:count]
    await made.came(count)
    return count


@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000, 12_345])
async def test_pieces_of_any_size_make_the_file_and_its_hash(
    monkeypatch: pytest.MonkeyPatch, size: int, promised: bool
) -> None:
    monkeypatch.setattr(body, "_HASHED_BYTES", 1000)
    chance = random.Random(size)
    whole = chance.randbytes(size)
    hashing = Counted()
    made = Body(size if promised else None, hashing)
    at = 0
    while at < size:
        at += await add(made, whole[at : at + chance.randint(1, 3000)])
    assert made.count == size
    assert len(made.room()) == 0 or not promised
    assert bytes(made.data) == whole
    assert await made.sha256() == hashlib.sha256(whole).hexdigest()
    # A small file, or one of unknown length, is hashed at once.
    beside = promised and size >= 1000
    assert bool(hashing.threads) is beside
    assert threading.get_ident() not in hashing.threads
    hashing.shutdown()


async def test_memory_is_taken_as_it_is_written() -> None:
    """Whoever promises a gigabyte and sends nothing takes none."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    with ThreadPoolExecutor(1) as hashing:
        before = resident()
        made = Body(1 << 30, hashing)
        assert await add(made, bytes(1 << 20)) == 1 << 20
        assert resident() - before < 64 << 20
        # Control: it shows where memory is really taken.
        taken = bytearray(128 << 20)
        assert resident() - before >= 128 << 20
        assert len(taken) == 128 << 20


async def test_a_large_file_is_one_memory_that_a_tensor_can_take_over(files: FileServer) -> None:
    whole = random.Random(1).randbytes((9 << 20) + 5)
    fetcher = Fetcher(FetchPolicy(max_bytes=1 << 25, allow_loopback=True))
    fetched = await fetcher.download(files.add(whole))
    await fetcher.aclose()
    assert fetched is not None
    assert fetched.sha256 == hashlib.sha256(whole).hexdigest()
    assert isinstance(fetched.data, memoryview)
    tensor = torch.frombuffer(fetched.data, dtype=torch.uint8, offset=8)
    del fetched
    assert tensor.numpy().tobytes() == whole[8:]


async def test_a_large_file_that_is_cut_is_refused_and_counts_no_more(files: FileServer) -> None:
    def script(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(8 << 20))
        handler.end_headers()
        handler.wfile.write(bytes(6 << 20))

    files.scripts["/cut"] = script
    budget = ByteBudget(1 << 25)
    fetcher = Fetcher(FetchPolicy(max_bytes=1 << 25, allow_loopback=True))
    with budget.share() as share:
        with pytest.raises(LoraDownloadFailed) as refusal:
            await fetcher.download(files.url("/cut"), share=share)
        assert (refusal.value.details or {})["reason"] in ("truncated", "unreachable")
        assert share.held == 0
    await fetcher.aclose()
