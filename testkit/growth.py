"""Whether work grows in line with its input: a ratio within one run, whatever machine it is."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call of `work`, in this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def grows_in_line(
    prepare: Callable[[int], Callable[[], object]], size: int, times: int = 8
) -> bool:
    """Whether work on `times` the input costs about `times` as much, and not its square.

    `prepare(n)` makes work on an input of size n; only the work is measured. A neighbour on the
    machine can make one reading of two larger, never smaller, so the least of several counts, and
    a reading in line with the input ends the test at once.
    """
    small, large = prepare(size), prepare(size * times)
    least = float("inf"), float("inf")
    for _ in range(5):
        least = min(least[0], seconds(small)), min(least[1], seconds(large))
        # Half way, by ratio, between in line and the square; below 20 ms nothing can be told.
        if least[1] <= max(0.02, least[0] * times * times**0.5):
            return True
    return False
