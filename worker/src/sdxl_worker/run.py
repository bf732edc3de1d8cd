"""One request's life as one object: its words, its LoRAs, its time, its callers.

Duty: what was asked and what was found for it; whether the work must stop; how long each phase
took; who watches. A `Run` is given to each stage instead of a handful of callbacks.
Must not know: how a picture is made, HTTP, the line.

`phase`, `check`, `emit`, `step` and `cancel` may be called from any thread. The others belong to
the event loop on which the run was created; a run created outside a loop (a warm-up, a benchmark)
draws as well as any other and has no listeners.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from PIL import Image

from sdxl_contract.errors import Cancelled, RequestTimeout
from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import GenerateRequest, LoraRef
from sdxl_contract.result import (
    DrawingReport,
    GenerateResult,
    LoraReport,
    Phase,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    Timings,
)
from sdxl_worker.embeddings import Embedding
from sdxl_worker.lora import ParsedLora
from sdxl_worker.pictures.canvas import Canvas
from sdxl_worker.watching.timings import Stopwatch

Event = QueuedEvent | ProgressEvent | PreviewEvent
Origin = Literal["memory", "disk", "miss"]
T = TypeVar("T")


@dataclass(frozen=True)
class RunLora:
    """One LoRA of a request: what was asked for, what it is, and where it was found."""

    ref: LoraRef
    parsed: ParsedLora
    origin: Origin

    def report(self) -> LoraReport:
        """The LoRA's entry in the result."""
        return self.parsed.report(self.ref.scale, self.ref.name)


def too_late(timeout_s: float) -> RequestTimeout:
    """The error of a request that ran out of its own time."""
    return RequestTimeout(
        f"the request took longer than its timeout of {timeout_s:g} s",
        details={"field": "timeout", "timeout_seconds": timeout_s},
    )


class Run:
    """One request being worked on, or done.

    Args:
        request: what the caller asked for.
        device: where the model is; phases that use a GPU wait for it before they are timed.
        timeout_s: seconds until the deadline; the request's own unless given.

    Attributes:
        id: the request's, or a new one.
        seed: of the first picture; random unless the request states one.
        loras: filled once they are fetched and parsed.
        embeddings: of its words, once they are fetched and read.
        control_pictures: RGB, one for each of the request's controls, once they are fetched.
        reference_pictures: likewise of its references.
        canvas: what is drawn over, once it is fetched; None: nothing.
        clean: whether the model's weights were restored and verified after this run.
        structure_clean: whether all else about the model was found as it was at start.
        drawing: how the denoising steps were made, once they are.
        task: the work itself, once started; ends with the result.
    """

    def __init__(
        self,
        request: GenerateRequest,
        *,
        device: torch.device | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.request = request
        self.id = request.request_id or uuid.uuid4().hex
        self.seed = int.from_bytes(os.urandom(4), "big") if request.seed is None else request.seed
        self.loras: list[RunLora] = []
        self.embeddings: list[Embedding] = []
        self.canvas: Canvas | None = None
        self.control_pictures: list[Image.Image] = []
        self.reference_pictures: list[Image.Image] = []
        self.clean = False
        self.structure_clean = False
        self.drawing: DrawingReport | None = None
        self.task: asyncio.Task[GenerateResult] | None = None
        self.started = time.perf_counter()
        self._watch = Stopwatch(device)
        self._timeout_s = request.timeout if timeout_s is None else timeout_s
        self._deadline = time.monotonic() + self._timeout_s
        self._cancelled = threading.Event()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        # The loop's own view of `_cancelled`: completes whatever `until` waits for.
        self._stopped = asyncio.Event()
        self._queued_at = self.started
        self._began_at: float | None = None
        self._callers = 0
        self._abandoned = False
        self._listeners: list[asyncio.Queue[Event]] = []
        self._queued: QueuedEvent | None = None
        self._last: Event | None = None

    @property
    def scaled_loras(self) -> list[tuple[ParsedLora, float]]:
        """The LoRAs as the patcher applies them: each with its strength."""
        return [(lora.parsed, lora.ref.scale) for lora in self.loras]

    def size(self, limits: ModelLimits) -> tuple[int, int]:
        """Width and height in px of what is drawn."""
        return self.request.size(limits) if self.canvas is None else self.canvas.size

    # --- stopping -----------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask the work to stop: at its next step, or at once where it waits for something."""
        self._cancelled.set()
        self._on_loop(self._stopped.set)

    @property
    def is_abandoned(self) -> bool:
        """Whether it stops because its callers went away: nobody asked for that."""
        return self._abandoned

    def join(self, request: GenerateRequest) -> None:
        """Another caller asks for the same: the run has as long as that one gives it, too."""
        asked = time.monotonic() + request.timeout
        if asked > self._deadline:
            self._deadline, self._timeout_s = asked, request.timeout

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline - time.monotonic()

    def check(self) -> None:
        """Raise `Cancelled` or `RequestTimeout` if the work must stop."""
        if self._cancelled.is_set():
            raise Cancelled("the request was cancelled, or its client went away")
        if self.remaining_s <= 0:
            raise too_late(self._timeout_s)

    async def until(self, work: Awaitable[T]) -> T:
        """The outcome of `work`, which is cancelled at the run's deadline or cancellation.

        Raises:
            Cancelled, RequestTimeout: the run must stop; `work` has ended by then.
        """
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            # Again where a later caller has given the run more time meanwhile.
            while not task.done() and not stopped.done() and self.remaining_s > 0:
                await asyncio.wait(
                    {task, stopped},
                    timeout=self.remaining_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                self.check()
                raise too_late(self._timeout_s)  # a loop's clock may ring a moment early
            return task.result()
        finally:
            stopped.cancel()
            task.cancel()

    # --- phases and progress ------------------------------------------------------------------

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Announce `phase` to the listeners and add the block's seconds to it."""
        self.emit(ProgressEvent(phase=phase, steps=self._steps))
        with self._watch.phase(phase):
            yield

    def line_up(self) -> None:
        """The run waits for the lane from now on."""
        self._queued_at = time.perf_counter()

    def begin(self) -> None:
        """The run's turn has come; ends the time in the queue."""
        self._began_at = time.perf_counter()
        self._watch.add(Phase.QUEUE, self._began_at - self._queued_at)

    @property
    def begun(self) -> bool:
        """Whether the run has had its turn on the lane."""
        return self._began_at is not None

    @property
    def seconds_on_lane(self) -> float:
        """Since the run's turn began, or since it was created if it needs no turn."""
        return time.perf_counter() - (self._began_at or self.started)

    def step(
        self,
        done: int,
        total: int,
        preview: Callable[[], str] | None = None,
        *,
        share: float | None = None,
    ) -> None:
        """Note a denoising step and stop here if the run must.

        Args:
            done, total: steps of all the request's pictures.
            preview: makes a small JPEG as base64; called only if somebody watches.
            share: of the work that is done, where steps are not all of one size.
        """
        self.check()
        share = done / total if share is None else share
        eta = round(self.seconds_on_lane / share * (1 - share), 2)
        self.emit(ProgressEvent(phase=Phase.DENOISE, step=done, steps=total, eta_seconds=eta))
        if preview is not None and self._listeners:
            self.emit(PreviewEvent(image_base64=preview(), step=done))

    def timings(self) -> Timings:
        """Seconds of each phase so far."""
        return self._watch.timings()

    @property
    def _steps(self) -> int:
        return self.request.all_steps() * self.request.num_images

    # --- callers ------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Send `event` to every listener."""
        self._on_loop(self._deliver, event)

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None:
            # A loop that was closed has no listeners left; the work goes on to its end.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *arguments)

    def _deliver(self, event: Event) -> None:
        if isinstance(event, QueuedEvent):
            self._queued = event
        else:
            self._last = event
        for queue in self._listeners:
            queue.put_nowait(event)

    def listen(self) -> asyncio.Queue[Event]:
        """A queue that gets the place in the line, the last event so far, and every later one."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for event in (self._queued, self._last):
            if event is not None:
                queue.put_nowait(event)
        self._listeners.append(queue)
        return queue

    async def result(self) -> GenerateResult:
        """Wait for the outcome as a caller; the last caller to leave cancels the run."""
        assert self.task is not None
        self._callers += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self._callers -= 1
            if self._callers == 0 and not self.task.done():
                self._abandoned = True
                self.cancel()
