"""Many small pieces of CPU work side by side, each on one core.

Duty: a pool in whose threads torch uses one core per operation. Weights of one model are written
faster like this than one after the other by all cores: no core waits for another one at the end of
each product, and what an operation leaves in a core's cache the next one finds there.
Must not know: what the work is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_T = TypeVar("_T")
_THREADS_MAX = 16


class CorePool:
    """One thread for each core that torch may use. Threads are made at the first use."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._count = 0

    def each(self, act: Callable[[_T], None], items: Iterable[_T]) -> None:
        """Call `act` with each item, in any order. Returns when nothing runs any more.

        After an exception no further item is begun.

        Raises:
            Whatever `act` raised; of several, that of the first item in order.
        """
        pool = self._pool or self._start()
        queue = enumerate(items)
        taking = threading.Lock()
        stop = threading.Event()
        failures: list[tuple[int, BaseException]] = []

        def work() -> None:
            # Each thread takes the next item itself: to hand out single ones, this thread would
            # need a core just when all of them are busy.
            number = 0
            try:
                while not stop.is_set():
                    with taking:
                        try:
                            number, item = next(queue)
                        except StopIteration:
                            return
                    act(item)
            except BaseException as error:
                stop.set()
                failures.append((number, error))

        running = [pool.submit(work) for _ in range(self._count)]
        try:
            for thread in running:
                thread.result()
        except BaseException:
            # An interrupt of this thread: none must go on behind the caller's back.
            stop.set()
            for thread in running:
                thread.exception()
            raise
        try:
            if failures:
                raise min(failures, key=lambda failure: failure[0])[1]
        finally:
            # An error knows the frames that it came through, and they know this list.
            failures.clear()

    def _start(self) -> ThreadPoolExecutor:
        cores = torch.get_num_threads()
        count = min(cores, _THREADS_MAX)
        pool = ThreadPoolExecutor(count, thread_name_prefix="weights")
        ready = threading.Barrier(count + 1, timeout=60)

        def begin() -> None:
            # Asked once, a thread does not take up the process's number again later.
            torch.get_num_threads()
            torch.set_num_threads(1)
            ready.wait()

        for _ in range(count):
            pool.submit(begin)
        ready.wait()
        # Besides its own, each thread has set what threads that begin later will have.
        torch.set_num_threads(cores)
        self._pool, self._count = pool, count
        return pool
