"""The lane: one at a time, in order, and same LoRA sets together within the stated bound."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_worker.line.lane import Lane, Waiting, place_of_same


def order_served(keys: list[str | None], run_max: int) -> tuple[list[int], list[bool]]:
    """Numbers of the pieces in the order in which they ran, and which found their set applied.

    The first piece holds the lane until all others are in line, so nothing depends on timing.
    """
    order: list[int] = []
    shared: list[bool] = []
    all_in_line = threading.Event()
    applied: list[str | None] = [None]

    def piece(number: int) -> Callable[[Callable[[], bool]], None]:
        def work(hand_over: Callable[[], bool]) -> None:
            if number == 0:
                assert all_in_line.wait(30)
            order.append(number)
            shared.append(keys[number] is not None and applied[0] == keys[number])
            applied[0] = keys[number]
            if not hand_over():
                applied[0] = None

        return work

    async def main() -> None:
        lane = Lane(run_max)
        tasks = []
        for number, key in enumerate(keys):
            tasks.append(asyncio.create_task(lane.run(key, piece(number))))
            # One turn of the loop: the task has put its work in line.
            await asyncio.sleep(0)
        all_in_line.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(lane.close)

    asyncio.run(main())
    return order, shared


def test_without_sharing_the_line_is_first_come_first_served() -> None:
    order, shared = order_served(["a", "b", "a", "a", "c"], 1)

    assert order == [0, 1, 2, 3, 4]
    assert not any(shared)


def test_work_with_the_applied_set_goes_forward_up_to_the_bound() -> None:
    order, shared = order_served(["a", "b", "a", "a", "a", "b"], 3)

    # Two more a's share with the first one; then b has been overtaken twice, which is the bound.
    assert order == [0, 2, 3, 1, 5, 4]
    assert shared == [False, True, True, False, True, False]


def test_work_without_a_set_shares_with_nobody() -> None:
    order, shared = order_served([None, "a", None, "a", None], 4)

    assert order == [0, 1, 3, 2, 4]
    assert shared == [False, False, True, False, False]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=14), st.integers(1, 4))
def test_nobody_starves(keys: list[str | None], run_max: int) -> None:
    order, shared = order_served(keys, run_max)

    assert sorted(order) == list(range(len(keys)))
    place = {number: position for position, number in enumerate(order)}
    for number in order:
        overtaken = sum(1 for later in order if later > number and place[later] < place[number])
        assert overtaken <= run_max - 1
    in_a_row = 1
    for found in shared:
        in_a_row = in_a_row + 1 if found else 1
        assert in_a_row <= run_max


def test_the_place_is_the_first_that_overtakes_nobody_too_often() -> None:
    def line(*entries: tuple[str, int]) -> list[Waiting]:
        return [Waiting(key, lambda _: None, overtaken) for key, overtaken in entries]

    assert place_of_same(line(("b", 0), ("a", 0), ("a", 0)), "a", 1) == 1
    assert place_of_same(line(("b", 1), ("a", 0)), "a", 1) is None
    assert place_of_same(line(("a", 5)), "a", 0) == 0
    assert place_of_same(line(("b", 0)), "a", 9) is None


def test_a_caller_that_stops_waiting_leaves_the_line_and_its_work_never_runs() -> None:
    ran: list[str] = []
    release = threading.Event()

    async def impatient(_: Awaitable[Any]) -> None:
        raise TimeoutError("enough")

    async def main() -> None:
        lane = Lane()
        first = asyncio.create_task(lane.run(None, lambda _: release.wait(30)))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError, match="enough"):
            await lane.run("a", lambda _: ran.append("left"), impatient)
        third = asyncio.create_task(lane.run("a", lambda _: ran.append("stayed")))
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(first, third)
        await asyncio.to_thread(lane.close)

    asyncio.run(main())
    assert ran == ["stayed"]


def test_work_that_was_promised_the_set_runs_although_its_caller_gave_up() -> None:
    """Or nobody would restore what it was to take over."""
    ran: list[str] = []
    promised, go_on = threading.Event(), threading.Event()
    gave_up = asyncio.Event()

    def first(hand_over: Callable[[], bool]) -> None:
        assert in_line.wait(30)
        assert hand_over()
        promised.set()
        assert go_on.wait(30)

    async def until(_: Awaitable[Any]) -> None:
        assert await asyncio.to_thread(promised.wait, 30)
        gave_up.set()
        go_on.set()
        raise TimeoutError("enough")

    in_line = threading.Event()

    async def main() -> Any:
        lane = Lane(2)
        one = asyncio.create_task(lane.run("a", first))
        await asyncio.sleep(0)
        two = asyncio.create_task(lane.run("a", lambda _: ran.append("restored"), until))
        await asyncio.sleep(0)
        in_line.set()
        await asyncio.gather(one, two)
        assert gave_up.is_set()
        await asyncio.to_thread(lane.close)

    asyncio.run(main())
    assert ran == ["restored"]


def test_an_exception_is_the_caller_s_and_the_lane_goes_on() -> None:
    def failing(_: Callable[[], bool]) -> None:
        raise ZeroDivisionError

    async def main() -> int:
        lane = Lane()
        with pytest.raises(ZeroDivisionError):
            await lane.run("a", failing)
        found = await lane.call(lambda: 7)
        await asyncio.to_thread(lane.close)
        return found

    assert asyncio.run(main()) == 7
