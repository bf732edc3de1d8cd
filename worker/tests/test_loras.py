"""Where LoRAs come from: memory, then disk, then one download; damage on disk is noticed."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdxl_contract.errors import ContractError
from sdxl_contract.request import GenerateRequest, LoraRef
from sdxl_worker.fetching.budget import Share
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.fetching.lora_source import LoraSource
from sdxl_worker.fetching.proof import Proof
from sdxl_worker.lora import DiskTier, LoraCache, ModelTargets, lora_targets
from sdxl_worker.run import Run
from testkit.worker import FileServer, RunningWorker, kohya_lora


@pytest.fixture(scope="module")
def targets(worker: RunningWorker) -> ModelTargets:
    assert worker.engine._ready is not None
    pipe = worker.engine._ready.model.pipe
    return lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)


@pytest.fixture(scope="module")
def data(targets: ModelTargets) -> bytes:
    """A small file: a few layers."""
    few = dict(list(targets.shapes.items())[:60])
    return kohya_lora(few, seed=3)


class Worker:
    """A source with empty memory over a folder that outlives it, as after a restart."""

    def __init__(self, targets: ModelTargets, folder: Path | None, budget: int = 1 << 30) -> None:
        self.cache = LoraCache(1 << 30)
        self.disk = DiskTier(folder, budget) if folder else None
        self._targets = targets
        self._known: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._proofs: OrderedDict[str, Proof] = OrderedDict()

    def get(self, *refs: LoraRef, forget: Callable[[], None] = lambda: None) -> list[str]:
        """Origins of `refs`, asked for all at once; `forget` runs before."""

        async def run() -> list[str]:
            policy = FetchPolicy(
                max_bytes=1 << 30, timeout_s=60, min_bytes_per_second=0, allow_loopback=True
            )
            fetcher = Fetcher(policy)
            source = LoraSource(fetcher, self.cache, self._targets, self.disk)
            source._aliases, source._proofs = self._known, self._proofs
            forget()
            share = Share(source.budget)
            try:
                found = await asyncio.gather(
                    *(source.get(ref, Run(GenerateRequest(prompt="x")), share) for ref in refs)
                )
            finally:
                await fetcher.aclose()
            return [lora.origin for lora in found]

        return asyncio.run(run())


def ref(url: str, data: bytes | None = None) -> LoraRef:
    return LoraRef(url=url, sha256=hashlib.sha256(data).hexdigest() if data else None)


def test_after_a_restart_the_disk_has_it(
    targets: ModelTargets, files: FileServer, data: bytes, tmp_path: Path
) -> None:
    url = files.add(data)
    assert Worker(targets, tmp_path).get(ref(url, data)) == ["miss"]
    restarted = Worker(targets, tmp_path)

    assert restarted.get(ref(url, data)) == ["disk"]
    assert restarted.get(ref(url, data)) == ["memory"]
    # One that it was, one piece of it for each time that it was used again.
    assert files.statuses == [200, 206, 206]


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "empty"])
def test_a_damaged_file_is_removed_and_fetched_again(
    targets: ModelTargets, files: FileServer, data: bytes, tmp_path: Path, damage: str
) -> None:
    url = files.add(data)
    Worker(targets, tmp_path).get(ref(url, data))
    (path,) = tmp_path.glob("*.safetensors")
    middle = len(data) // 2
    path.write_bytes(
        {
            "a flipped bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "cut short": data[:-1],
            "empty": b"",
        }[damage]
    )
    restarted = Worker(targets, tmp_path)

    assert restarted.get(ref(url, data)) == ["miss"]
    assert restarted.disk is not None
    assert restarted.disk.stats.rejected == 1
    assert path.read_bytes() == data
    assert len(files.hits) == 2


def test_without_a_hash_the_server_vouches_for_what_is_on_disk(
    targets: ModelTargets, files: FileServer, data: bytes, tmp_path: Path
) -> None:
    url = files.add(data)
    worker = Worker(targets, tmp_path)
    worker.get(ref(url))

    assert worker.get(ref(url), forget=worker.cache.clear) == ["disk"]
    assert files.statuses == [200, 304]


def test_what_is_held_nowhere_any_more_is_fetched_whole(
    targets: ModelTargets, files: FileServer, data: bytes, tmp_path: Path
) -> None:
    url = files.add(data)
    worker = Worker(targets, tmp_path)
    worker.get(ref(url))

    def forget() -> None:
        worker.cache.clear()
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()

    assert worker.get(ref(url), forget=forget) == ["miss"]
    assert files.statuses == [200, 200]


def test_the_disk_s_own_budget_holds_and_memory_goes_on_without_it(
    targets: ModelTargets, files: FileServer, data: bytes, tmp_path: Path
) -> None:
    other = data[:-2] + b"\0\0"
    urls = [files.add(data, "/a"), files.add(other, "/b")]
    worker = Worker(targets, tmp_path, budget=len(data) + 10)
    for url, content in zip(urls, (data, other), strict=True):
        worker.get(ref(url, content))

    assert [p.stem for p in tmp_path.iterdir()] == [hashlib.sha256(other).hexdigest()]
    assert worker.get(ref(urls[0], data)) == ["memory"]


def test_two_that_ask_at_once_share_one_download(
    targets: ModelTargets, files: FileServer, data: bytes
) -> None:
    url = files.add(data)
    assert Worker(targets, None).get(ref(url), ref(url)) == ["miss", "memory"]
    assert files.statuses == [200, 304]


def test_a_file_that_is_refused_is_kept_nowhere(
    targets: ModelTargets, files: FileServer, data: bytes, tmp_path: Path
) -> None:
    bad: dict[str, Any] = {"not safetensors": b"<html>", "cut": data[: len(data) // 2]}
    worker = Worker(targets, tmp_path)
    for name, content in bad.items():
        with pytest.raises(ContractError):
            worker.get(ref(files.add(content, f"/{len(name)}")))

    assert list(tmp_path.iterdir()) == []
    assert worker.cache.contents() == []
