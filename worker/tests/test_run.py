"""A run: when it stops whatever it waits for, what it counts, and who hears of it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from sdxl_contract.errors import Cancelled, RequestTimeout
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import Phase, PreviewEvent, ProgressEvent
from sdxl_worker.line.lane import Lane
from sdxl_worker.run import Run

REQUEST = GenerateRequest(prompt="a tree", steps=4, num_images=2)


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.timeout(60)
async def test_what_a_run_waits_for_ends_at_once_when_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(REQUEST)
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    waiting = asyncio.create_task(run.until(endless()))
    await _settle()
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)  # no timer fires any more
    await asyncio.to_thread(run.cancel)
    with pytest.raises(Cancelled):
        await waiting

    assert ended == ["work"], "it has ended by the time the caller is told"


async def test_what_a_run_waits_for_ends_at_its_deadline() -> None:
    run = Run(REQUEST, timeout_s=0.05)

    with pytest.raises(RequestTimeout, match=r"0\.05 s"):
        await run.until(asyncio.sleep(30))


async def test_a_run_that_was_cancelled_before_waits_for_nothing() -> None:
    run = Run(REQUEST)
    run.cancel()
    await _settle()

    with pytest.raises(Cancelled):
        await run.until(asyncio.sleep(30))


async def test_outcomes_pass_through_and_so_do_errors() -> None:
    run = Run(REQUEST)

    async def failing() -> None:
        raise ZeroDivisionError

    assert await run.until(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ZeroDivisionError):
        await run.until(failing())


async def test_a_caller_that_is_cancelled_takes_its_work_along() -> None:
    run = Run(REQUEST)
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(run.until(work))
    await _settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert work.cancelled()


async def test_a_cancelled_run_leaves_the_line_without_waiting_for_its_turn() -> None:
    lane, run = Lane(), Run(REQUEST)
    release = threading.Event()
    ran: list[str] = []
    first = asyncio.create_task(lane.call(lambda: release.wait(30)))
    await _settle()
    second = asyncio.create_task(lane.run("a", lambda _: ran.append("ran"), run.until))
    await _settle()
    run.cancel()
    with pytest.raises(Cancelled):
        await second

    assert not first.done()
    release.set()
    await first
    await asyncio.to_thread(lane.close)
    assert ran == []


async def test_a_phase_is_announced_and_its_seconds_add_up_also_when_it_raises() -> None:
    run = Run(REQUEST)
    heard = run.listen()
    with run.phase(Phase.APPLY):
        time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), run.phase(Phase.APPLY):
        time.sleep(0.01)
        raise ZeroDivisionError
    await _settle()

    assert run.timings().apply >= 0.02
    assert heard.get_nowait() == ProgressEvent(phase=Phase.APPLY, steps=8)
    assert heard.qsize() == 1


async def test_previews_are_made_only_for_those_who_watch() -> None:
    run, made = Run(REQUEST), []

    def preview() -> str:
        made.append(1)
        return "picture"

    run.step(1, 8, preview)
    assert made == []
    heard = run.listen()
    run.step(4, 8, preview)
    await _settle()

    events: list[Any] = [heard.get_nowait() for _ in range(heard.qsize())]
    assert [e.step for e in events if isinstance(e, ProgressEvent)] == [1, 4]
    assert [e.image_base64 for e in events if isinstance(e, PreviewEvent)] == ["picture"]
    assert made == [1]


async def test_the_last_caller_to_leave_cancels_the_run() -> None:
    run = Run(REQUEST)
    run.task = asyncio.create_task(run.until(asyncio.sleep(30)))  # type: ignore[arg-type]
    callers = [asyncio.create_task(run.result()) for _ in range(2)]
    await _settle()
    callers[0].cancel()
    await _settle()
    run.check()
    callers[1].cancel()
    await _settle()

    with pytest.raises(Cancelled):
        run.check()
    with pytest.raises(Cancelled):
        await run.task


def test_a_run_needs_no_loop_to_be_drawn() -> None:
    run = Run(REQUEST)
    with run.phase(Phase.DENOISE):
        run.step(1, 8, lambda: pytest.fail("nobody watches"))
    run.cancel()

    with pytest.raises(Cancelled):
        run.step(2, 8)


def test_a_random_seed_is_chosen_once() -> None:
    assert Run(REQUEST).seed != Run(REQUEST).seed
    assert Run(GenerateRequest(prompt="x", seed=7)).seed == 7
