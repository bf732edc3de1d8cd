"""One attempt after another: claim the content that is next, have it drawn, store it, end it.

Every end is fenced by the attempt. Objects are stored before the row says so; an attempt that lost
its content removes what it stored. What is only away for a while (worker, store, database) ends no
content before its deadline: the attempt gives it back to the queue, or goes on asking.
Must not know: HTTP, and how jobs are queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import uuid
from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import structlog

from app.core.db import DATABASE_LOST, Database
from app.core.errors import StorageFailed
from app.core.settings import Settings
from app.core.tracing import continued, span
from app.models import Content, Image, Status
from app.models.base import utc_now
from app.repositories.attempts import AttemptRepository, Claimed, Holds
from app.services.contents.charging import (
    WORKED,
    Gpu,
    charge_if_deleted,
    cost_of_nothing,
    cost_of_picture,
)
from app.services.contents.dispatch import (
    JobFailed,
    build_request,
    check_as_asked,
    failure,
    parameters_used,
    progress_writer,
    record_of,
)
from app.services.contents.ledger import Ledger, is_late
from app.services.contents.storing import clear_earlier, discard, image_row, store
from app.services.costs import CallClock, cost_columns
from app.services.marking.marker import MarkingFailed
from app.services.marking.marking import Marking
from app.services.marking.sources import find_source
from app.services.modal_sdxl_lora_client import InferenceOutcome
from app.services.storage import Storage
from app.services.worker.gate import Gate, waiting_for
from app.services.worker.inference import Inference
from app.services.worker.retry import Outage, is_expired, is_permanent, outage
from sdxl_contract.errors import Cancelled, ContractError, ErrorCode, RequestTimeout
from sdxl_contract.request import GenerateRequest

_WORKER_STOP_SECONDS = 2.0
_TOLD = 1000
_LOOK_SECONDS = 1.0  # how often a runner with nothing to do looks again
_LONGEST_PAUSE_S = 3.0

log = logging.getLogger(__name__)


class _Lost(Exception):
    """The content is another attempt's by now, or was deleted."""


class Drawing:
    """Works off one content after another; `on_end(content_id, status)` hears of each end."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        inference: Inference,
        marking: Marking,
        gate: Gate,
        on_end: Callable[[uuid.UUID, Status], None],
        gpu: Gpu,
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._inference = inference
        self._ledger = Ledger(database)
        self._marking = marking
        self._gate = gate
        self._on_end = on_end
        self._gpu = gpu
        # A store counts whole seconds, from the one in which a URL was signed.
        self._url_seconds = settings.lora_url_seconds - 1
        # Runs of this process by content: one that was held for dead may overlap with the next.
        self._taken_up: Counter[uuid.UUID] = Counter()
        self._unwanted: set[uuid.UUID] = set()  # of those, the ones that were told to stop
        self._told: deque[uuid.UUID] = deque(maxlen=_TOLD)  # of what nobody here had taken up
        self._drawing: dict[uuid.UUID, asyncio.Task[InferenceOutcome]] = {}
        self._stopping: dict[uuid.UUID, asyncio.Task[None]] = {}

    def stop(self, content_id: uuid.UUID) -> None:
        """Stop drawing a content, where this process draws it."""
        if content_id in self._drawing:
            if content_id not in self._stopping:
                self._stopping[content_id] = asyncio.create_task(self._stop(content_id))
        elif content_id in self._taken_up:
            self._unwanted.add(content_id)
        else:
            # It may just have been claimed, and the database's answer be on its way.
            self._told.append(content_id)

    async def _stop(self, content_id: uuid.UUID) -> None:
        # The worker first: its answer says that it stopped. The call to it ends in any case.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_WORKER_STOP_SECONDS):
                await self._inference.cancel(str(content_id))
        drawing = self._drawing.get(content_id)
        if drawing is not None:
            drawing.cancel()

    async def run(self, job_id: int) -> None:
        """Use one ticket of the queue: see one content to its end, whichever is next.

        While nothing can be done (the worker is away, or what waits is to be tried later) no
        content is held: they stay queued, and this only looks.
        """
        places = self._settings.same_lora_places
        while True:
            claimed = None
            is_open = await self._gate.opens_within(_LOOK_SECONDS)
            if is_open:
                claimed = await self._ledger.ask(lambda rows: rows.claim(job_id, places))
            if claimed is not None:
                if await self._run(claimed):
                    return
                continue
            if not await self._ledger.ask(lambda repository: repository.has_work(job_id)):
                return
            if is_open:
                await asyncio.sleep(_LOOK_SECONDS)

    async def _run(self, claimed: Claimed) -> bool:
        """One attempt; whether the content needs none any more, as far as this one knows."""
        content = claimed.content
        self._taken_up[content.id] += 1
        if content.id in self._told:
            self._unwanted.add(content.id)
        # The worker's log lines hold the same id.
        with (
            structlog.contextvars.bound_contextvars(request_id=str(content.id)),
            continued(claimed.trace),
            span("content.draw", content=str(content.id)),
        ):
            try:
                return await self._try(content)
            finally:
                self._taken_up[content.id] -= 1
                if not self._taken_up[content.id]:
                    del self._taken_up[content.id]
                    self._unwanted.discard(content.id)

    async def _try(self, content: Content) -> bool:
        clock = CallClock()
        try:
            await self._attempt(content, clock)
        except asyncio.CancelledError:
            # The server stops: the next start draws the same picture, its seed is in the row.
            clock.ended()
            with contextlib.suppress(Exception):
                await asyncio.shield(self._release(content, clock, is_patient=False))
            raise
        except DATABASE_LOST:
            log.warning("content %s: the database is away", content.id)
            await self._release(content, clock, is_forgiven=not clock.began)
            return False
        except ContractError as error:
            clock.ended()
            return await self._give_back_or_fail(content, clock, error)
        except MarkingFailed as error:
            await self._fail(content, clock, ErrorCode.GENERATION_FAILED, str(error))
        except (JobFailed, StorageFailed) as error:
            await self._fail(content, clock, error.code, error.message)
        except _Lost:
            log.warning("content %s: attempt %d came too late", content.id, content.attempt)
        except Exception:
            log.exception("content %s failed unexpectedly", content.id)
            await self._fail(
                content,
                clock,
                ErrorCode.GENERATION_FAILED,
                "Something went wrong in the server; its log says what.",
            )
        return True

    async def _attempt(self, content: Content, clock: CallClock) -> None:
        interrupted = content.attempt - 1 - content.releases
        if interrupted >= self._settings.job_max_attempts:
            raise JobFailed(
                ErrorCode.GENERATION_FAILED,
                f"given up after {interrupted} attempts that were interrupted",
            )
        if is_late(content):
            raise JobFailed(ErrorCode.TIMEOUT, "its deadline passed before it was drawn")
        log.info("content %s: attempt %d starts", content.id, content.attempt)
        if content.attempt > 1 + content.releases:
            await clear_earlier(self._storage, content)
        outcome = await self._draw(content, clock)
        clock.ended()
        check_as_asked(content, outcome.result)
        self._gate.worked()
        images: list[Image] = []
        kept: bool | None = False
        source = None
        if self._marking.signs:
            source = await find_source(content, self._database, self._storage)
        sign = functools.partial(self._marking.picture, content, outcome.result, source)
        try:
            for position, drawn in enumerate(outcome.images):
                data, mark = await self._marking.watermarked(content, drawn.file)
                images.append(image_row(content, outcome.result, position, data, mark))
                await store(
                    self._storage,
                    images[-1],
                    data,
                    drawn.shrunk if mark is None else None,
                    sign,
                    lambda error: self._tell_store_is_away(content, error),
                )
            await self._ledger.refuse_taken_down(content, images)
            kept = None  # until the database answers, which it may do too late to be heard
            kept = await self._ledger.finish(
                content,
                self._success(content, outcome, clock),
                images,
                record_of(content, outcome.result, images, self._settings),
            )
        finally:
            # What nobody knows is left: the next attempt or the sweep removes what has no row.
            if kept is False:
                await asyncio.shield(discard(self._storage, images))
        if not kept:
            await charge_if_deleted(
                self._database, content, cost_of_picture(content, outcome, clock, self._gpu)
            )
            raise _Lost
        log.info("content %s: attempt %d succeeded", content.id, content.attempt)
        self._on_end(content.id, Status.SUCCEEDED)

    async def _tell_store_is_away(self, content: Content, error: StorageFailed) -> None:
        """Say what the content waits for; raise where nobody waits any more.

        Raises:
            StorageFailed: its deadline has passed.
            Cancelled, _Lost: it is not wanted, or not this attempt's.
        """
        if is_late(content):
            raise error
        holds = Holds.HELD
        with contextlib.suppress(*DATABASE_LOST):
            async with self._database.direct() as connection:
                repository = AttemptRepository(connection)
                holds = await repository.holds(content.id, content.attempt)
                if holds is Holds.HELD:
                    await repository.wait_for(content.id, content.attempt, waiting_for("storage"))
        if holds is Holds.UNWANTED or content.id in self._unwanted:
            raise Cancelled("stopped before it was stored")
        if holds is not Holds.HELD:
            raise _Lost

    async def _draw(self, content: Content, clock: CallClock) -> InferenceOutcome:
        seconds = self._settings.modal_timeout_seconds
        if content.deadline_at is not None:
            left = (content.deadline_at - utc_now()).total_seconds()
            seconds = max(0.001, min(seconds, left))
        calls = itertools.count()

        async def build() -> GenerateRequest:
            if await self._is_unwanted(content, is_first=next(calls) == 0):
                raise Cancelled("stopped before it was drawn")
            request = await build_request(content, self._database, self._storage, self._settings)
            clock.sent()
            return request

        drawing = asyncio.ensure_future(
            self._inference.generate(
                build,
                request_id=str(content.id),
                deadline_s=seconds,
                on_event=progress_writer(content, self._database, clock, self.stop),
            )
        )
        self._drawing[content.id] = drawing
        try:
            return await drawing
        except asyncio.CancelledError:
            if content.id not in self._stopping:
                raise  # the server stops
            raise Cancelled("stopped while it was drawn") from None
        except RequestTimeout:
            if clock.began and is_late(content):
                raise JobFailed(
                    ErrorCode.TIMEOUT, "its deadline passed while it was drawn"
                ) from None
            raise
        finally:
            drawing.cancel()
            self._drawing.pop(content.id, None)
            stopping = self._stopping.pop(content.id, None)
            if stopping is not None:
                stopping.cancel()

    async def _is_unwanted(self, content: Content, is_first: bool) -> bool:
        """Whether somebody asked to stop it. Just after the claim its own row still says so."""
        if content.id in self._unwanted:
            return True
        if is_first:
            return content.cancel_requested_at is not None
        async with self._database.direct() as connection:
            return await AttemptRepository(connection).wants_stop(content.id)

    async def _give_back_or_fail(
        self, content: Content, clock: CallClock, error: ContractError
    ) -> bool:
        """Put it back where what failed is only away for a while; else write that it failed."""
        found = outage(error)
        if found is None and error.code is ErrorCode.TIMEOUT and not clock.began:
            found = Outage.BUSY  # it stood in the worker's line, or nobody answered
        if found is None and is_expired(error) and clock.seconds >= self._url_seconds:
            found = Outage.LORA  # signed anew at the next attempt
        if found is None:
            if error.code is not ErrorCode.CANCELLED:
                self._gate.worked()
            if error.code in WORKED and not is_permanent(error):
                clock.count_unheard()
            await self._fail(content, clock, error.code, error.message, error.details)
            return True
        log.warning("content %s waits: %s: %s", content.id, error.code, error.message)
        if found is Outage.LORA:
            is_picture = error.code is ErrorCode.IMAGE_DOWNLOAD_FAILED
            reason = waiting_for("image_unreachable" if is_picture else "lora_unreachable")
            pause = min(2.0 ** min(content.releases, 8) / 2, _LONGEST_PAUSE_S)
            retry_at = utc_now() + timedelta(seconds=pause)
            is_forgiven = True
        else:
            self._gate.shut(found, error.retry_after)
            reason, retry_at = self._gate.waiting_for or waiting_for("worker_unreachable"), None
            # One that a worker died of each time is not asked for for ever.
            is_forgiven = not clock.began
        await self._release(
            content, clock, waits_for=reason, retry_at=retry_at, is_forgiven=is_forgiven
        )
        return False

    def _success(
        self, content: Content, outcome: InferenceOutcome, clock: CallClock
    ) -> dict[str, Any]:
        result = outcome.result
        return {
            "status": Status.SUCCEEDED,
            "parameters": parameters_used(content, result),
            "lora_reports": [report.model_dump(mode="json") for report in result.loras],
            "timings": result.timings.model_dump(),
            "model_clean": result.model_clean,
            "safety": None if result.safety is None else result.safety.model_dump(mode="json"),
            "provider": outcome.provider,
            "provider_attempts": outcome.attempts,
            "error": None,
            **cost_columns(cost_of_picture(content, outcome, clock, self._gpu)),
        }

    async def _fail(
        self,
        content: Content,
        clock: CallClock,
        code: str,
        message: str,
        details: dict[str, Any] | None = None,
    ) -> None:
        error = failure(code, message, details)
        log.warning("content %s failed: %s: %s", content.id, code, error["message"])
        status = Status.CANCELLED if code == ErrorCode.CANCELLED else Status.FAILED
        cost = cost_of_nothing(content, clock, self._gpu)
        values = {"status": status, "error": error}
        if await self._ledger.finish(
            content, values | ({} if cost is None else cost_columns(cost))
        ):
            self._on_end(content.id, status)
        else:
            await charge_if_deleted(self._database, content, cost)

    async def _release(self, content: Content, clock: CallClock, **how: Any) -> None:
        """Put it back into the queue with what was used; `how`: see `Ledger.release`."""
        cost = cost_of_nothing(content, clock, self._gpu)
        await self._ledger.release(content, {} if cost is None else cost_columns(cost), **how)
