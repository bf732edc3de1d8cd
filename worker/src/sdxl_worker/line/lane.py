"""The lane: work on the model, one piece at a time, and the line before it.

Duty: run pieces of work one after another on one thread, in order of arrival; let work that needs
the LoRA set that is applied already go first, within a bound.
Must not know: what the work does, HTTP, LoRAs beyond a key that says which sets are the same.

The bound: at most `run_max` pieces in a row share one applied set, and no waiting piece is ever
overtaken more than `run_max - 1` times in all. So with 1 nobody is overtaken and nothing is shared.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
# How a caller waits for its work: the outcome, or an exception once it should wait no longer.
Until = Callable[[Awaitable[Any]], Awaitable[Any]]


async def _without_end(work: Awaitable[T]) -> T:
    return await work


@dataclass(eq=False)
class Waiting:
    """One piece of work in line.

    Attributes:
        key: what it needs applied; equal keys can share. None shares with nobody.
        overtaken: how many later pieces went before it.
    """

    key: Hashable | None
    work: Callable[[Callable[[], bool]], Any]
    overtaken: int = 0
    future: Future[Any] = field(default_factory=Future)


def place_of_same(line: Sequence[Waiting], key: Hashable, overtakes_max: int) -> int | None:
    """Place of the first piece in `line` with `key` that may go next; None if there is none.

    It may if nobody before it has been overtaken `overtakes_max` times already.
    """
    for place, waiting in enumerate(line):
        if waiting.key == key:
            return place
        if waiting.overtaken >= overtakes_max:
            return None
    return None


class Lane:
    """Runs one piece of work at a time; see the module's text."""

    def __init__(self, run_max: int = 1) -> None:
        self._run_max = run_max
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lane")
        self._lock = threading.Lock()
        self._line: list[Waiting] = []
        # Chosen by the piece that runs now, whose applied set it takes over.
        self._heir: Waiting | None = None
        self._in_a_row = 1

    async def run(
        self,
        key: Hashable | None,
        work: Callable[[Callable[[], bool]], T],
        until: Until = _without_end,
    ) -> T:
        """The outcome of `work`, once it has run on the lane's thread.

        Args:
            work: gets a function that it may call once, at its end and only if what `key` names
                is still applied: True means that the next piece takes it over, so it stays.
            until: awaits what it is given and raises when the caller should wait no longer; then
                the work leaves the line, unless it has begun or was promised the applied set: it
                runs, and must notice for itself that it should stop.
        """
        waiting = Waiting(key, work)
        with self._lock:
            self._line.append(waiting)
        self._executor.submit(self._serve_one)
        future = asyncio.wrap_future(waiting.future)
        try:
            await until(asyncio.shield(future))
        except BaseException as error:
            if self._left(waiting) or isinstance(error, asyncio.CancelledError):
                raise
            # On the lane, or next on it: its own checks end it. Or it has raised already.
        result: T = await future
        return result

    async def call(self, work: Callable[[], T]) -> T:
        """The outcome of `work` on the lane's thread; shares with nobody."""
        return await self.run(None, lambda _: work())

    def close(self) -> None:
        """Wait until all that is in line has run; blocks."""
        self._executor.shutdown(wait=True)

    def _left(self, waiting: Waiting) -> bool:
        with self._lock:
            if waiting not in self._line:
                return False
            self._line.remove(waiting)
            return True

    def _serve_one(self) -> None:
        with self._lock:
            if self._heir is not None:
                waiting, self._heir = self._heir, None
                self._in_a_row += 1
            elif self._line:
                waiting = self._line.pop(0)
                self._in_a_row = 1
            else:
                return  # it left the line
        try:
            result = waiting.work(lambda: self._hand_over(waiting.key))
        except BaseException as error:
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(result)

    def _hand_over(self, key: Hashable | None) -> bool:
        with self._lock:
            if key is None or self._in_a_row >= self._run_max:
                return False
            place = place_of_same(self._line, key, self._run_max - 1)
            if place is None:
                return False
            for passed in self._line[:place]:
                passed.overtaken += 1
            self._heir = self._line.pop(place)
            return True
