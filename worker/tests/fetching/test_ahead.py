"""A file's header is read while its body is on the way."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import mmap
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sdxl_contract.errors import LoraDownloadFailed, LoraLoadFailed
from sdxl_contract.lora.safetensors import read_header_bytes
from sdxl_contract.request import GenerateRequest, LoraRef
from sdxl_worker.fetching import ahead as looking_ahead
from sdxl_worker.fetching import body
from sdxl_worker.fetching.ahead import HeaderAhead
from sdxl_worker.fetching.budget import ByteBudget
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.fetching.lora_source import LoraSource
from sdxl_worker.loading.weight_reader import own_memory
from sdxl_worker.lora import LoraCache, ModelTargets, contents, lay_out_file, parse_lora
from sdxl_worker.run import Run, RunLora
from testkit.loras.making import tiny_model
from testkit.worker import FileServer, file_server, kohya_lora

PIECE = 20_000


@pytest.fixture(scope="module")
def targets() -> ModelTargets:
    return tiny_model().targets()


@pytest.fixture(scope="module")
def fits(targets: ModelTargets) -> bytes:
    return kohya_lora(targets.shapes, seed=3)


@pytest.fixture(scope="module")
def misfit() -> bytes:
    """For no layer of the model, and 40 pieces long."""
    return save({"lora_unet_nowhere.lora_down.weight": torch.zeros(4, 5 * PIECE).half()})


@pytest.fixture(autouse=True)
def small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "_HASHED_BYTES", 1000)


class Dripping:
    """Sends a file piece by piece; `sent` are the bytes that went out."""

    def __init__(self, data: bytes, pause_s: float) -> None:
        self.data, self.pause_s, self.sent = data, pause_s, 0

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.data)))
        handler.end_headers()
        for start in range(0, len(self.data), PIECE):
            handler.wfile.write(self.data[start : start + PIECE])
            self.sent = start + PIECE
            time.sleep(self.pause_s)


@pytest.fixture
def files() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


def get(
    files: FileServer, targets: ModelTargets, data: bytes, sha256: str | None, pause_s: float = 0.06
) -> Any:
    """The LoRA that is served drop by drop, or why there is none; and the bytes that were sent."""
    dripping = Dripping(data, pause_s)
    files.scripts["/lora"] = dripping
    policy = FetchPolicy(1 << 30, timeout_s=60, min_bytes_per_second=0, allow_loopback=True)

    async def run() -> RunLora:
        fetcher = Fetcher(policy)
        source = LoraSource(fetcher, LoraCache(1 << 30), targets)
        try:
            refs = [LoraRef(url=files.url("/lora"), sha256=sha256)]
            with source.budget.share() as share:
                one = Run(GenerateRequest(prompt="x", loras=refs))
                return (await source.get_all(one, share))[0]
        finally:
            assert source.budget.held == 0
            await fetcher.aclose()

    try:
        return asyncio.run(run()).parsed, dripping.sent
    except (LoraLoadFailed, LoraDownloadFailed) as error:
        return error, dripping.sent


def test_a_misfit_is_told_before_its_body_is_here(
    files: FileServer, targets: ModelTargets, misfit: bytes
) -> None:
    error, sent = get(files, targets, misfit, None)

    assert isinstance(error, LoraLoadFailed)
    assert "does not fit" in error.message
    assert sent < len(misfit) / 2


def test_what_is_no_safetensors_file_is_named_as_early(
    files: FileServer, targets: ModelTargets
) -> None:
    page = b"<!doctype html>" + b" " * 40 * PIECE
    error, sent = get(files, targets, page, None)

    assert isinstance(error, LoraLoadFailed)
    assert "an HTML page" in error.message
    assert sent < len(page) / 2


def test_where_a_hash_was_promised_another_file_is_told_first(
    files: FileServer, targets: ModelTargets, misfit: bytes
) -> None:
    short = misfit[: 10 * PIECE]
    error, _ = get(files, targets, short, "0" * 64, 0)
    assert isinstance(error, LoraDownloadFailed)
    assert error.details is not None
    assert error.details["reason"] == "hash_mismatch"

    # Control: of the very file it is its header that is told.
    error, sent = get(files, targets, short, hashlib.sha256(short).hexdigest(), 0)
    assert isinstance(error, LoraLoadFailed)
    assert sent >= len(short)


def test_the_header_is_read_once(
    files: FileServer, targets: ModelTargets, fits: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = parse_lora(fits, targets)
    read: list[str] = []

    def noted(where: str, function: Any) -> Any:
        def call(*given: Any) -> Any:
            read.append(where)
            return function(*given)

        return call

    monkeypatch.setattr(looking_ahead, "lay_out_file", noted("ahead", lay_out_file))
    monkeypatch.setattr(contents, "read_header_bytes", noted("whole", read_header_bytes))
    found, _ = get(files, targets, fits, None, 0)

    assert read == ["ahead"]
    assert found.layers.keys() == expected.layers.keys()
    for name, layer in expected.layers.items():
        assert found.layers[name].factor == layer.factor
        for slot, tensor in layer.tensors.items():
            assert torch.equal(found.layers[name].tensors[slot], tensor)


@pytest.mark.parametrize("promised", [True, False])
def test_a_file_that_is_refused_is_let_go_of_at_once(
    files: FileServer,
    targets: ModelTargets,
    misfit: bytes,
    monkeypatch: pytest.MonkeyPatch,
    promised: bool,
) -> None:
    """Not when Python looks for garbage: by then its bytes count for nobody."""
    memories: list[weakref.ref[mmap.mmap]] = []

    def noted(size: int) -> mmap.mmap:
        memory = own_memory(size)
        memories.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(body, "own_memory", noted)
    gc.collect()
    gc.disable()
    try:
        sha256 = hashlib.sha256(misfit).hexdigest() if promised else None
        error, _ = get(files, targets, misfit, sha256, 0)
        assert isinstance(error, LoraLoadFailed)
        assert len(memories) == 1
        # A thread that worked on it may have its last line to do.
        until = time.monotonic() + 10
        while memories[0]() is not None and time.monotonic() < until:
            time.sleep(0.01)
        assert memories[0]() is None
    finally:
        gc.enable()


def test_what_waits_for_a_thread_holds_no_file_once_nobody_wants_it(targets: ModelTargets) -> None:
    going_on = threading.Event()
    memory = bytearray(1000)

    async def run(reading: ThreadPoolExecutor) -> None:
        reading.submit(going_on.wait, 10)
        ahead = HeaderAhead(reading, targets, tells=True)
        ahead.came(memoryview(memory), len(memory))
        with pytest.raises(BufferError):
            memory.append(0)  # it is held
        ahead.give_up(ByteBudget(1 << 20))
        memory.append(0)

    with ThreadPoolExecutor(1) as reading:
        try:
            asyncio.run(run(reading))
        finally:
            going_on.set()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 10_000])
def test_a_header_is_begun_with_once_it_is_whole(targets: ModelTargets, length: int) -> None:
    data = memoryview((length).to_bytes(8, "little") + b"{" + b" " * 20_000)
    needed = 8 + max(length, 512)
    with ThreadPoolExecutor(1) as reading:
        ahead = HeaderAhead(reading, targets, tells=False)
        ahead.came(data[: needed - 1], len(data))
        assert asyncio.run(ahead.layout()) is None
        ahead.came(data[:needed], len(data))
        with pytest.raises(LoraLoadFailed):
            asyncio.run(ahead.layout())


def test_a_length_beyond_all_reason_is_not_waited_for(targets: ModelTargets) -> None:
    data = memoryview(b"\xff" * 1000)
    with ThreadPoolExecutor(1) as reading:
        ahead = HeaderAhead(reading, targets, tells=False)
        ahead.came(data, 1 << 30)
        with pytest.raises(LoraLoadFailed, match="not a safetensors file"):
            asyncio.run(ahead.layout())


def test_a_header_that_nobody_waits_for_counts_until_it_was_read(
    targets: ModelTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    monkeypatch.setattr(looking_ahead, "lay_out_file", lambda *_: going_on.wait(10))
    data = memoryview(bytes(1000))

    async def run(reading: ThreadPoolExecutor) -> list[int]:
        budget = ByteBudget(1 << 20)
        ahead, behind = (HeaderAhead(reading, targets, tells=True) for _ in range(2))
        for one in (ahead, behind):
            one.came(data, len(data))
        while not ahead._begun or not ahead._begun.running():
            await asyncio.sleep(0.01)
        for one in (ahead, behind):
            one.give_up(budget)
        # The second one waited for its turn, and never has it.
        held = [budget.held]
        going_on.set()
        while budget.held:
            await asyncio.sleep(0.01)
        return held

    with ThreadPoolExecutor(1) as reading:
        assert asyncio.run(run(reading)) == [1000]
