"""Repeated calls: what is joined, what begins anew, and whose time and right count."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from sdxl_contract.errors import Cancelled, RequestTimeout
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import GenerateResult, Metadata, ModelInfo, Phase, QueuedEvent
from sdxl_worker.line.registry import Registry
from sdxl_worker.run import Run
from testkit.worker import SIDE, FileServer

RESULT = GenerateResult(
    image_size=(64, 64),
    generation_time_seconds=1,
    model_info=ModelInfo(base_model="x", lora_applied=False),
    metadata=Metadata(seed_used=1, actual_steps=1, actual_cfg=1),
)


def asked(timeout: int = 60) -> GenerateRequest:
    return GenerateRequest(prompt="x", request_id="order-1", timeout=timeout)


async def drawing(run: Run, seconds: float = 30) -> GenerateResult:
    await run.until(asyncio.sleep(seconds))
    return RESULT


async def left(registry: Registry, run: Run) -> None:
    """`run`, started, and left by its only caller."""
    registry.start(run, drawing(run))
    caller = asyncio.create_task(run.result())
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller})


async def test_a_call_repeated_after_a_lost_connection_begins_anew() -> None:
    registry, run = Registry(60, 1 << 20), Run(asked())
    await left(registry, run)

    assert registry.find(asked()) is None
    again = Run(asked())
    registry.start(again, drawing(again, 0.05))
    with pytest.raises(Cancelled):
        assert run.task is not None
        await run.task
    assert registry.find(asked()) is again
    assert await again.result() is RESULT
    assert registry.state("order-1") == "succeeded"


async def test_a_call_repeated_while_it_is_cancelled_on_purpose_is_told_so() -> None:
    registry, run = Registry(60, 1 << 20), Run(asked())
    registry.start(run, drawing(run))
    await asyncio.sleep(0)
    registry.cancel("order-1")

    assert registry.find(asked()) is run
    with pytest.raises(Cancelled):
        await run.result()
    await asyncio.sleep(0)
    assert registry.find(asked()) is None


async def test_a_later_caller_s_time_counts_for_it() -> None:
    registry, run = Registry(60, 1 << 20), Run(asked(1))
    registry.start(run, drawing(run, 1.2))
    await asyncio.sleep(0.05)
    assert registry.find(asked(30)) is run
    assert await run.result() is RESULT

    short = Run(asked(1).model_copy(update={"request_id": "short"}))
    registry.start(short, drawing(short, 3))
    with pytest.raises(RequestTimeout):
        await short.result()


async def test_whoever_listens_late_still_hears_that_it_was_queued() -> None:
    run = Run(asked())
    run.emit(QueuedEvent(position=2))
    with run.phase(Phase.DOWNLOAD):
        await asyncio.sleep(0.01)
    queue = run.listen()

    assert queue.get_nowait().type == "queued"
    assert queue.get_nowait().type == "progress"


def test_joining_another_s_request_takes_a_right_of_one_s_own(
    client: httpx2.Client, files: FileServer, lora_data: bytes
) -> None:
    def signed(handler: Any) -> None:
        valid = "Signature=valid" in handler.path
        handler.send_response(200 if valid else 403)
        handler.send_header("Content-Length", str(len(lora_data) if valid else 0))
        handler.end_headers()
        handler.wfile.write(lora_data if valid else b"")

    files.scripts["/k"] = signed
    body = {"prompt": "x", "width": SIDE, "height": SIDE, "steps": 1, "seed": 5}
    answers = [
        client.post(
            "/generate-image",
            json=body
            | {"request_id": "joined", "lora_url": files.url("/k", f"X-Amz-Signature={word}")},
        )
        for word in ("valid-1", "forged", "valid-2")
    ]

    assert [answer.status_code for answer in answers] == [200, 400, 200]
    assert json.loads(answers[0].text)["image_sha256"] == answers[2].json()["image_sha256"]
