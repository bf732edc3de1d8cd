"""Whose file it is: each caller gets its own object by its own right, whatever others do."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sdxl_contract.errors import ContractError, LoraDownloadFailed, Overloaded
from sdxl_contract.request import GenerateRequest, LoraRef
from sdxl_worker.fetching.budget import ByteBudget
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.fetching.lora_source import LoraSource
from sdxl_worker.line.registry import fingerprint
from sdxl_worker.lora import LoraCache, ModelTargets, lora_targets
from sdxl_worker.run import Run
from testkit.worker import FileServer, RunningWorker, kohya_lora


@pytest.fixture(scope="module")
def targets(worker: RunningWorker) -> ModelTargets:
    assert worker.engine._ready is not None
    pipe = worker.engine._ready.model.pipe
    return lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)


@pytest.fixture(scope="module")
def loras(targets: ModelTargets) -> list[bytes]:
    few = dict(list(targets.shapes.items())[:40])
    return [kohya_lora(few, seed=seed) for seed in (1, 2)]


@pytest.fixture
async def source(targets: ModelTargets) -> AsyncIterator[LoraSource]:
    policy = FetchPolicy(1 << 30, timeout_s=20, min_bytes_per_second=0, allow_loopback=True)
    fetcher = Fetcher(policy)
    yield LoraSource(fetcher, LoraCache(1 << 30), targets, budget=ByteBudget(1 << 22))
    await fetcher.aclose()


async def get(source: LoraSource, *refs: LoraRef) -> list[str]:
    """The hashes of what one request gets for `refs`."""
    run = Run(GenerateRequest(prompt="x", loras=list(refs)))
    with source.budget.share() as share:
        return [lora.parsed.sha256 for lora in await source.get_all(run, share)]


async def reason(source: LoraSource, *refs: LoraRef) -> str:
    with pytest.raises(LoraDownloadFailed) as refusal:
        await get(source, *refs)
    assert refusal.value.details is not None
    return str(refusal.value.details["reason"])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def serve(files: FileServer, path: str, answers: dict[str, tuple[int, bytes]], s: float = 0) -> Any:
    """Answer by the query, after `s` seconds."""

    def script(handler: Any) -> None:
        time.sleep(s)
        query = handler.path.partition("?")[2]
        status, body = next((a for part, a in answers.items() if part in query), (403, b"no"))
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    files.scripts[path] = script


async def test_urls_that_differ_in_what_they_name_bring_their_own_files(
    source: LoraSource, files: FileServer, loras: list[bytes]
) -> None:
    one, two = loras
    serve(files, "/k", {"versionId=1": (200, one), "versionId=2": (200, two)}, 0.1)
    refs = [LoraRef(url=files.url("/k", f"versionId={n}&X-Amz-Signature=s{n}")) for n in (1, 2)]

    assert await get(source, *refs) == [sha(one), sha(two)]
    assert await asyncio.gather(*(get(source, one) for one in refs)) == [[sha(one)], [sha(two)]]


async def test_a_right_signature_works_beside_a_forged_one(
    source: LoraSource, files: FileServer, loras: list[bytes]
) -> None:
    serve(files, "/k", {"Signature=valid": (200, loras[0])}, 0.2)
    forged, valid = (
        LoraRef(url=files.url("/k", f"X-Amz-Signature={word}")) for word in ("forged", "valid")
    )

    for first, second in ((forged, valid), (valid, forged)):
        found = await asyncio.gather(
            get(source, first), get(source, second), return_exceptions=True
        )
        by_ref = dict(zip((first.url, second.url), found, strict=True))
        assert by_ref[valid.url] == [sha(loras[0])]
        assert isinstance(by_ref[forged.url], LoraDownloadFailed)


async def test_whoever_may_not_read_a_file_gets_it_from_no_cache(
    source: LoraSource, files: FileServer, loras: list[bytes]
) -> None:
    """Not by its hash, not by its object's name, and not from a place of one's own."""
    digest = sha(loras[0])
    serve(files, "/k", {"Signature=valid": (200, loras[0])})
    await get(source, LoraRef(url=files.url("/k", "X-Amz-Signature=valid"), sha256=digest))
    forged = files.url("/k", "X-Amz-Signature=forged")
    own = files.add(loras[1], "/own")

    assert await reason(source, LoraRef(url=forged, sha256=digest)) == "http_status"
    assert await reason(source, LoraRef(url=forged)) == "http_status"
    assert await reason(source, LoraRef(url=own, sha256=digest)) == "hash_mismatch"
    assert await reason(source, LoraRef(url=files.url("/gone"), sha256=digest)) == "http_status"


@pytest.mark.parametrize("ranges", [True, False])
async def test_whoever_may_read_it_gets_it_without_a_second_download_where_the_store_can(
    source: LoraSource, files: FileServer, loras: list[bytes], ranges: bool
) -> None:
    digest, files.ranges = sha(loras[0]), ranges
    for place in ("/a", "/b"):
        url = files.add(loras[0], place)
        assert await get(source, LoraRef(url=url, sha256=digest)) == [digest]
    assert files.statuses == [200, 206 if ranges else 200]


async def test_a_right_file_works_beside_a_wrong_one_of_the_same_hash(
    source: LoraSource, files: FileServer, loras: list[bytes]
) -> None:
    good, other = loras
    serve(files, "/good", {"": (200, good)}, 0.2)
    serve(files, "/other", {"": (200, other)}, 0.1)
    wrong, right = (LoraRef(url=files.url(p), sha256=sha(good)) for p in ("/other", "/good"))

    found = await asyncio.gather(get(source, wrong), get(source, right), return_exceptions=True)

    assert isinstance(found[0], LoraDownloadFailed)
    assert found[1] == [sha(good)]


async def test_a_caller_that_leaves_takes_nobody_with_it(
    source: LoraSource, files: FileServer, loras: list[bytes]
) -> None:
    serve(files, "/k", {"": (200, loras[0])}, 0.3)
    ref = LoraRef(url=files.url("/k"))
    first = asyncio.create_task(get(source, ref))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(get(source, ref))
    await asyncio.sleep(0.05)
    first.cancel()

    assert await second == [sha(loras[0])]


async def test_a_download_ends_with_the_caller_that_wanted_it(
    source: LoraSource, files: FileServer
) -> None:
    """And with the first of a request's LoRAs that fails: its others are not wanted any more."""
    ended: list[float] = []

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(10_000):
                handler.wfile.write(b"x" * 1024)
                time.sleep(0.01)
        except OSError:
            ended.append(time.monotonic())

    files.scripts["/endless"] = endless
    slow = LoraRef(url=files.url("/endless"))
    task = asyncio.create_task(get(source, slow))
    await asyncio.sleep(0.2)
    assert source.budget.held > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ContractError):
        await get(source, slow, LoraRef(url=files.url("/gone")))

    for _ in range(1000):
        if len(ended) == 2:
            break
        await asyncio.sleep(0.02)
    assert len(ended) == 2
    assert source.budget.held == 0


async def test_no_more_bytes_are_on_their_way_than_the_budget_says(
    source: LoraSource, files: FileServer
) -> None:
    serve(files, "/large", {"": (200, b"x" * (3 << 20))}, 0.1)
    urls = [files.url("/large", f"id={n}") for n in range(4)]

    found = await asyncio.gather(
        *(get(source, LoraRef(url=url)) for url in urls), return_exceptions=True
    )

    assert any(isinstance(one, Overloaded) for one in found)
    assert all(isinstance(one, ContractError) for one in found)
    assert source.budget.held == 0


@pytest.mark.parametrize(
    ("field", "first", "second", "same"),
    [
        ("lora_url", "https://b.example/k?X-Amz-Signature=1", "https://b.example/k", True),
        ("lora_url", "https://b.example/k?versionId=1", "https://b.example/k?versionId=2", False),
        ("lora_url", "https://b.example/dl?id=1", "https://b.example/dl?id=2", False),
        ("output_url", "https://b.example/k?expires=1&signature=1", "https://b.example/k", True),
        ("output_url", "https://b.example/k?id=1", "https://b.example/k?id=2", False),
        ("prompt", "https://b.example/k?expires=1&signature=1", "https://b.example/k", False),
    ],
)
def test_a_repeated_request_is_the_same_but_for_its_signatures(
    field: str, first: str, second: str, same: bool
) -> None:
    one, two = (
        fingerprint(GenerateRequest.model_validate({"prompt": "x", field: url}))
        for url in (first, second)
    )
    assert (one == two) is same
