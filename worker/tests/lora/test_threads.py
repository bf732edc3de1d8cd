"""Work side by side: all of it, none after a failure, nothing behind the caller's back."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from sdxl_worker.lora.threads import CorePool


@pytest.fixture(autouse=True)
def three_cores() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_item_is_worked_on_once_by_threads_of_one_core_each() -> None:
    seen: list[tuple[int, str, int]] = []
    CorePool().each(
        lambda item: seen.append((item, threading.current_thread().name, torch.get_num_threads())),
        range(300),
    )

    assert sorted(item for item, _, _ in seen) == list(range(300))
    assert {cores for _, _, cores in seen} == {1}
    assert all(name.startswith("weights") for _, name, _ in seen)
    # This thread, and those that begin later, are as they were.
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (3, [3])


def test_items_are_really_worked_on_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)

    def meet(_: int) -> None:
        together.wait()

    CorePool().each(meet, range(3))


def test_a_failure_ends_the_work_and_nothing_runs_when_it_is_told() -> None:
    running, begun = 0, 0
    lock = threading.Lock()

    def act(item: int) -> None:
        nonlocal running, begun
        with lock:
            running, begun = running + 1, begun + 1
        try:
            time.sleep(0.01)
            if item == 5:
                raise ValueError(f"number {item}")
        finally:
            with lock:
                running -= 1

    pool = CorePool()
    with pytest.raises(ValueError, match="number 5"):
        pool.each(act, range(1000))

    assert running == 0
    assert begun < 100
    # It can be used again.
    begun = 0
    pool.each(act, range(10, 20))
    assert begun == 10
