"""Whether the worker takes work now: shut when it is found away, open when it is well again.

Duty: one state for all runners of this process, cheap looks while somebody waits, and words for
whoever is kept waiting. Must not know: contents and how they are queued.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from app.core.db import DATABASE_LOST
from app.models import PAUSED
from app.services.worker.base_model import BaseModel, Seen
from app.services.worker.retry import Outage

_FIRST_S, _LONGEST_S = 0.5, 10.0
_LOOK_S = 3.0  # between two looks at most: it is found again within seconds
_LOOK_WITHIN_S = 15.0
WORDS: Mapping[str, str] = {
    "worker_unreachable": "the worker cannot be reached; it is asked again every few seconds",
    "worker_loading": "the worker is loading its model",
    "worker_failed": "the worker could not load its model; it is asked again every few seconds",
    "worker_busy": "the worker takes no more requests at the moment",
    "image_unreachable": "the worker cannot fetch a picture to draw from at the moment",
    "lora_unreachable": "the worker cannot fetch a LoRA's file at the moment",
    PAUSED["reason"]: PAUSED["message"],
    "storage": "the picture is drawn, and the object store does not take it at the moment",
}

_AWAY = (Seen.UNREACHABLE, Seen.LOADING, Seen.FAILED)

log = logging.getLogger(__name__)


def waiting_for(reason: str) -> dict[str, str]:
    """What the API shows of a content that waits for something."""
    return {"reason": reason, "message": WORDS[reason]}


class Gate:
    """Runners pass it before they take up a content.

    Args:
        base_model: knows how the worker is.
        now: seconds of a monotonic clock.
    """

    def __init__(self, base_model: BaseModel, now: Callable[[], float] = time.monotonic) -> None:
        self._base_model = base_model
        self._now = now
        self._reason: str | None = None
        self._failures = 0  # in a row
        self._not_before = 0.0  # no work is tried before, whatever the worker's health is
        self._look_at = 0.0
        self._pause = _FIRST_S
        self._looking = asyncio.Lock()
        self._opened = asyncio.Event()
        self._opened.set()

    @property
    def waiting_for(self) -> dict[str, str] | None:
        """What keeps work from going on; None where nothing does."""
        if self._reason is not None:
            return waiting_for(self._reason)
        # No runner has come to it yet, as just after a start.
        seen = self._base_model.seen
        return waiting_for(_reason(seen)) if seen in _AWAY else None

    def shut(self, found: Outage, retry_after: float | None = None) -> None:
        """An attempt found the worker away, or busy for `retry_after` seconds."""
        self._failures += 1
        pause = min(_FIRST_S * 2.0 ** (self._failures - 1), _LONGEST_S)
        self._not_before = self._now() + max(pause, min(retry_after or 0.0, 600.0))
        self._look_at, self._pause = self._now() + _FIRST_S, _FIRST_S
        self._close("worker_busy" if found is Outage.BUSY else _reason(self._base_model.seen))

    def worked(self) -> None:
        """The worker did what was asked of it."""
        self._failures = 0
        self._open()

    async def opens_within(self, seconds: float) -> bool:
        """Wait for it to be open, at most so long; whether it is."""
        if self._reason is None:
            # A worker that is seen to be away is not tried, so that nothing seems to begin.
            seen = self._base_model.seen
            if seen in _AWAY:
                self._look_at, self._pause = self._now(), _FIRST_S
                self._close(_reason(seen))
            else:
                return True
        end = self._now() + seconds
        while self._reason is not None and (left := end - self._now()) > 0:
            wait = min(max(self._look_at - self._now(), 0.0), left)
            try:
                await asyncio.wait_for(self._opened.wait(), wait)
            except TimeoutError:
                await self._look()
        return self._reason is None

    async def _look(self) -> None:
        async with self._looking:
            if self._reason is None or self._now() < self._look_at:
                return
            try:
                await self._base_model.look(_LOOK_WITHIN_S)
            except DATABASE_LOST as error:
                log.warning("what the worker is cannot be kept: %s", type(error).__name__)
            self._look_at = self._now() + self._pause
            self._pause = min(self._pause * 1.5, _LOOK_S)
            seen = self._base_model.seen
            if seen in _AWAY:
                self._reason = _reason(seen)
            elif self._now() >= self._not_before:
                # Ready; or it has no health that we can read, and only trying can tell.
                self._open()

    def _close(self, reason: str) -> None:
        if self._reason is None:
            log.warning("contents wait: %s", WORDS[reason])
        self._reason = reason
        self._opened.clear()

    def _open(self) -> None:
        if self._reason is not None:
            log.info("the worker takes work again")
        self._reason = None
        self._opened.set()


def _reason(seen: Seen) -> str:
    if seen is Seen.LOADING:
        return "worker_loading"
    return "worker_failed" if seen is Seen.FAILED else "worker_unreachable"
