"""Requests in flight and results kept: what makes a repeated call safe.

Duty: one run for each request_id, joined by every caller that repeats it; its result kept for a
while. Must not know: how a picture is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any

from sdxl_contract.errors import InvalidRequest
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import GenerateResult
from sdxl_contract.routing.object_key import object_key
from sdxl_worker.run import Run

_URLS = frozenset({"url", "lora_url", "output_url", "output_urls"})


def fingerprint(request: GenerateRequest) -> str:
    """Hash of what a request asks for; signatures of its URLs do not count, since every retry
    signs anew."""

    def unsigned(value: object, field: str = "") -> object:
        if isinstance(value, dict):
            return {k: unsigned(v, k) for k, v in value.items() if k != "request_id"}
        if isinstance(value, list):
            return [unsigned(item, field) for item in value]
        return object_key(value) if field in _URLS and isinstance(value, str) else value

    plain = unsigned(request.model_dump(mode="json", exclude={"timeout"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class Registry:
    """All runs by request_id. Lives on one event loop.

    Args:
        keep_s: seconds for which a finished run answers a repeated request_id.
        keep_bytes: of results kept; the oldest go first.
    """

    def __init__(self, keep_s: float, keep_bytes: int) -> None:
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._running: dict[str, Run] = {}
        self._kept: OrderedDict[str, tuple[float, int, Run]] = OrderedDict()

    def find(self, request: GenerateRequest) -> Run | None:
        """The running or kept run of `request.request_id`, if it asked for the same.

        Raises:
            InvalidRequest: the id was used for another request.
        """
        self._forget_old()
        if request.request_id is None:
            return None
        run = self._running.get(request.request_id)
        if run is not None and run.is_abandoned:
            # It stops because its callers went away: nobody chose that, so the call begins anew.
            return None
        if run is None and request.request_id in self._kept:
            run = self._kept[request.request_id][2]
        if run is None:
            return None
        if fingerprint(run.request) != fingerprint(request):
            raise InvalidRequest(
                "request_id was used for another request: a repeated call must ask for the same",
                details={"field": "request_id"},
            )
        run.join(request)
        return run

    def start(self, run: Run, work: Coroutine[Any, Any, GenerateResult]) -> None:
        """Start `work` and keep its result when it succeeds."""
        self._running[run.id] = run
        run.task = asyncio.create_task(work)
        run.task.add_done_callback(lambda task: self._finished(run, task))

    def cancel(self, request_id: str) -> bool:
        """Cancel the run of that id; False if none is running."""
        run = self._running.get(request_id)
        if run is None:
            return False
        run.cancel()
        return True

    def cancel_all(self) -> None:
        """Cancel everything that runs: the worker is going away."""
        for run in self._running.values():
            run.cancel()

    def state(self, request_id: str) -> str | None:
        """`running`, `succeeded` (kept) or None (unknown here: ended without result, or never
        seen)."""
        self._forget_old()
        if request_id in self._running:
            return "running"
        return "succeeded" if request_id in self._kept else None

    def ids(self) -> tuple[list[str], list[str]]:
        """The ids of what runs, and of what ended with a result that is kept."""
        self._forget_old()
        return list(self._running), list(self._kept)

    @property
    def running(self) -> int:
        """How many runs are not finished."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many of them have not had their turn on the lane yet."""
        return sum(not run.begun for run in self._running.values())

    def _finished(self, run: Run, task: asyncio.Task[GenerateResult]) -> None:
        if self._running.get(run.id) is run:
            del self._running[run.id]
        if task.cancelled() or task.exception() is not None:
            return
        size = len(task.result().image_base64 or "")
        size += sum(len(image.image_base64 or "") for image in task.result().images[1:])
        self._kept[run.id] = (time.monotonic(), size, run)
        self._forget_old()

    def _forget_old(self) -> None:
        total = sum(size for _, size, _ in self._kept.values())
        oldest_allowed = time.monotonic() - self._keep_s
        while self._kept:
            request_id, (finished, size, _) = next(iter(self._kept.items()))
            if finished >= oldest_allowed and total <= self._keep_bytes:
                break
            del self._kept[request_id]
            total -= size
