"""How often one caller may do something that needs no key, and how often somebody may try in vain,
within this process.

Must not know: what is done or tried, HTTP.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from app.core.errors import RateLimited

_CALLERS_MAX = 10_000
_TRIED_MAX = 10_000  # names; the one that failed longest ago goes first


class Rate:
    """A bucket of calls for each caller, filled evenly; who was silent longest is forgotten."""

    def __init__(
        self, calls: int, *, per_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._calls = calls
        self._per_s = per_seconds
        self._every_s = per_seconds / calls
        self._clock = clock
        # When each caller's bucket would be full again, oldest use first.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one call.

        Raises:
            RateLimited: the bucket is empty; it says when the next call is free.
        """
        now = self._clock()
        full_at = max(now, self._full_at.get(caller, now)) + self._every_s
        wait = full_at - now - self._calls * self._every_s
        if wait > 1e-9:
            wait = max(1.0, round(wait, 1))
            free_at = datetime.now(UTC) + timedelta(seconds=wait)
            raise RateLimited(
                f"Too many calls without a key: at most {self._calls} in {self._per_s:g} s.",
                free_at=free_at,
                retry_after=wait,
            )
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        while len(self._full_at) > _CALLERS_MAX:
            self._full_at.popitem(last=False)


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
        if len(self._failed) > _TRIED_MAX:
            self._failed.popitem(last=False)
