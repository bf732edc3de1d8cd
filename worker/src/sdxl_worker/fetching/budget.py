"""How many bytes of LoRA files may be in memory at once on their way into the model.

Duty: one sum over all requests, and a share of it that a request gives back when it ends. Must
not know: what the bytes are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from sdxl_contract.errors import LoraDownloadFailed, Overloaded

_RETRY_AFTER_S = 5.0


class Share:
    """What one request holds of a `ByteBudget`."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, count: int) -> None:
        """Hold `count` bytes more.

        Raises:
            LoraDownloadFailed: the request alone wants more than there is.
            Overloaded: the other requests leave too little.
        """
        limit = self._budget.limit
        if self.held + count > limit:
            raise LoraDownloadFailed(
                f"the request's files are larger than {limit} bytes together",
                details={"reason": "too_large", "maximum": limit},
            )
        if self._budget.held + count > limit:
            raise Overloaded(
                "the files of other requests fill the memory that is kept for downloads",
                details={"bytes_in_flight": self._budget.held},
                retry_after=_RETRY_AFTER_S,
            )
        self.held += count
        self._budget.held += count

    def give_back(self, count: int) -> None:
        """Hold `count` bytes less: of a download that failed, or was not needed."""
        self.held -= count
        self._budget.held -= count


class ByteBudget:
    """Lives on one event loop.

    Attributes:
        limit: bytes that all requests together may hold.
        held: what they hold now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def lingers(self, count: int, work: Future[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Hold `count` bytes until `work` has ended, in a thread that nobody waits for."""
        self.held += count

        def ended() -> None:
            self.held -= count

        def tell(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(ended)

        work.add_done_callback(tell)

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One request's share, which ends with the block."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back(share.held)
