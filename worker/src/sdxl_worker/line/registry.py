"""Requests in flight and results kept: what makes a repeated call safe.

Duty: one running job for each request_id, joined by every caller that repeats it; a result kept
for a while; a job ended when its last caller has gone. Must not know: how a picture is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

from sdxl_contract.errors import Cancelled, InvalidRequest, RequestTimeout
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import GenerateResult, PreviewEvent, ProgressEvent, QueuedEvent

Event = QueuedEvent | ProgressEvent | PreviewEvent


class CancelToken:
    """Says, from any thread, whether work must stop: cancelled, or past its deadline."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop at its next step."""
        self._cancelled.set()

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raise `Cancelled` or `RequestTimeout` if the work must stop."""
        if self._cancelled.is_set():
            raise Cancelled("the request was cancelled, or its client went away")
        if self.remaining_s <= 0:
            raise timeout_error(self.timeout_s)


def timeout_error(timeout_s: float) -> RequestTimeout:
    """The error of a request that ran out of its own time."""
    return RequestTimeout(
        f"the request took longer than its timeout of {timeout_s:g} s",
        details={"field": "timeout", "timeout_seconds": timeout_s},
    )


def fingerprint(request: GenerateRequest) -> str:
    """Hash of what a request asks for; signatures of its URLs do not count, since every retry
    signs anew."""

    def unsigned(value: object) -> object:
        if isinstance(value, dict):
            return {k: unsigned(v) for k, v in value.items() if k != "request_id"}
        if isinstance(value, list):
            return [unsigned(item) for item in value]
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            parts = urlsplit(value)
            return f"{parts.scheme}://{parts.netloc}{parts.path}"
        return value

    plain = unsigned(request.model_dump(mode="json", exclude={"timeout"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class Job:
    """One request being worked on, or done."""

    def __init__(self, request: GenerateRequest, request_id: str) -> None:
        self.request = request
        self.request_id = request_id
        self.fingerprint = fingerprint(request)
        self.token = CancelToken(request.timeout)
        self.task: asyncio.Task[GenerateResult] | None = None
        self.callers = 0
        self._listeners: list[asyncio.Queue[Event]] = []
        self._loop = asyncio.get_running_loop()
        self._last: Event | None = None

    def listen(self) -> asyncio.Queue[Event]:
        """A queue that gets every later event, and the last one so far."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        if self._last is not None:
            queue.put_nowait(self._last)
        self._listeners.append(queue)
        return queue

    @property
    def has_listeners(self) -> bool:
        """Whether anyone watches; previews are made only then."""
        return bool(self._listeners)

    def emit(self, event: Event) -> None:
        """Tell every listener; callable from any thread."""
        self._loop.call_soon_threadsafe(self._deliver, event)

    def _deliver(self, event: Event) -> None:
        self._last = event
        for queue in self._listeners:
            queue.put_nowait(event)

    async def result(self) -> GenerateResult:
        """Wait for the outcome as one of the job's callers; the last to leave cancels the job."""
        assert self.task is not None
        self.callers += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.callers -= 1
            if self.callers == 0 and not self.task.done():
                self.token.cancel()


class Registry:
    """All jobs by request_id. Lives on one event loop.

    Args:
        keep_s: seconds for which a finished job answers a repeated request_id.
        keep_bytes: of results kept; the oldest go first.
    """

    def __init__(self, keep_s: float, keep_bytes: int) -> None:
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._running: dict[str, Job] = {}
        self._kept: OrderedDict[str, tuple[float, int, Job]] = OrderedDict()

    def find(self, request: GenerateRequest) -> Job | None:
        """The running or kept job of `request.request_id`, if it asked for the same.

        Raises:
            InvalidRequest: the id was used for another request.
        """
        self._forget_old()
        if request.request_id is None:
            return None
        job = self._running.get(request.request_id)
        if job is None and request.request_id in self._kept:
            job = self._kept[request.request_id][2]
        if job is None:
            return None
        if job.fingerprint != fingerprint(request):
            raise InvalidRequest(
                "request_id was used for another request: a repeated call must ask for the same",
                details={"field": "request_id"},
            )
        return job

    def start(self, job: Job, work: Callable[[Job], asyncio.Task[GenerateResult]]) -> None:
        """Run `work(job)` and keep its result when it succeeds."""
        self._running[job.request_id] = job
        job.task = work(job)
        job.task.add_done_callback(lambda task: self._finished(job, task))

    def cancel(self, request_id: str) -> bool:
        """Cancel the running job of that id; False if there is none."""
        job = self._running.get(request_id)
        if job is None:
            return False
        job.token.cancel()
        return True

    def cancel_all(self) -> None:
        """Cancel everything that runs: the worker is going away."""
        for job in self._running.values():
            job.token.cancel()

    def state(self, request_id: str) -> str | None:
        """`running`, `succeeded` (kept) or None (unknown here: ended without result, or never
        seen)."""
        self._forget_old()
        if request_id in self._running:
            return "running"
        return "succeeded" if request_id in self._kept else None

    @property
    def running(self) -> int:
        """How many jobs are not finished."""
        return len(self._running)

    def _finished(self, job: Job, task: asyncio.Task[GenerateResult]) -> None:
        del self._running[job.request_id]
        if task.cancelled() or task.exception() is not None:
            return
        size = len(task.result().image_base64 or "")
        size += sum(len(image.image_base64 or "") for image in task.result().images[1:])
        self._kept[job.request_id] = (time.monotonic(), size, job)
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
