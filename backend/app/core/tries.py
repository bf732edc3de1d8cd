"""How often somebody may try in vain.

Must not know: what is tried, and by whom.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

_KEPT = 10_000  # names; the one that failed longest ago goes first


class Tries:
    """Failures by name, within some seconds; in this process only."""

    def __init__(
        self, limit: int, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, name: str) -> float:
        """Seconds until `name` may try again; 0 where it may."""
        failed = self._failed.get(name)
        if failed is None or len(failed) < self._limit:
            return 0.0
        return max(0.0, failed[0] + self._seconds - self._clock())

    def fail(self, name: str) -> None:
        """Note that `name` has tried in vain."""
        self._failed.setdefault(name, deque(maxlen=self._limit)).append(self._clock())
        self._failed.move_to_end(name)
        if len(self._failed) > _KEPT:
            self._failed.popitem(last=False)
