"""One job's life: claim the content, have it drawn, store the pictures, write the end.

Every end is fenced by the attempt. Objects are stored before the row says so; an attempt that
lost its content removes what it stored.
Must not know: HTTP, and how jobs are queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from app.core.db import DATABASE_LOST, Database
from app.core.errors import StorageFailed
from app.core.pools import Duty, in_pool
from app.core.settings import Settings
from app.models import Content, Image, Status
from app.models.base import utc_now
from app.repositories.attempts import AttemptRepository
from app.repositories.events import EventRepository
from app.repositories.loras import LoraRepository
from app.services.contents.thumbnails import THUMBNAIL_SIDE, make_thumbnail
from app.services.costs import CallClock, price
from app.services.marking.likeness import likeness
from app.services.marking.marker import MarkingFailed
from app.services.marking.marking import Marking
from app.services.modal_sdxl_lora_client import InferenceOutcome
from app.services.storage import Storage
from app.services.worker.inference import Inference
from sdxl_contract.errors import Cancelled, ContractError, ErrorCode
from sdxl_contract.limits import TIMEOUT_MAX_S
from sdxl_contract.request import GenerateRequest, LoraRef
from sdxl_contract.result import GenerateResult, PreviewEvent, ProgressEvent, WorkerEvent

# Progress is written at most this often: a picture of a moment needs none.
_PROGRESS_SECONDS = 0.5
_PREVIEW_MAX_CHARS = 200_000
_WORKER_STOP_SECONDS = 2.0
# Facts of a failure that a page can put into a sentence of its own.
_KEPT_DETAILS = frozenset(
    {"reason", "field", "width", "height", "http_status", "timeout_seconds", "maximum", "nearest"}
)

log = logging.getLogger(__name__)


class JobFailed(Exception):
    """A reason of our own for a content's failure; the message is shown."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Drawing:
    """Works off one content after another; `on_end(content_id, status)` hears of each end."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        inference: Inference,
        marking: Marking,
        on_end: Callable[[uuid.UUID, Status], None],
        gpu: Callable[[], str | None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._inference = inference
        self._marking = marking
        self._on_end = on_end
        self._gpu = gpu
        # Runs of this process by content: one that was held for dead may overlap with the next.
        self._taken_up: Counter[uuid.UUID] = Counter()
        self._unwanted: set[uuid.UUID] = set()  # of those, the ones that were told to stop
        self._drawing: dict[uuid.UUID, asyncio.Task[InferenceOutcome]] = {}
        self._stopping: dict[uuid.UUID, asyncio.Task[None]] = {}

    def stop(self, content_id: uuid.UUID) -> None:
        """Stop drawing a content, where this process draws it."""
        if content_id in self._drawing:
            if content_id not in self._stopping:
                self._stopping[content_id] = asyncio.create_task(self._stop(content_id))
        elif content_id in self._taken_up:
            self._unwanted.add(content_id)

    async def _stop(self, content_id: uuid.UUID) -> None:
        # The worker first: its answer says that it stopped. The call to it ends in any case.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_WORKER_STOP_SECONDS):
                await self._inference.cancel(str(content_id))
        drawing = self._drawing.get(content_id)
        if drawing is not None:
            drawing.cancel()

    async def run(self, content_id: uuid.UUID) -> None:
        """Draw one content. Raises only where its end could not be written."""
        self._taken_up[content_id] += 1
        try:
            async with self._database.direct() as connection:
                content = await AttemptRepository(connection).claim(content_id)
            if content is not None:
                await self._run(content)
        finally:
            self._taken_up[content_id] -= 1
            if not self._taken_up[content_id]:
                del self._taken_up[content_id]
                self._unwanted.discard(content_id)

    async def _run(self, content: Content) -> None:
        try:
            await self._attempt(content)
        except asyncio.CancelledError:
            # The server stops: the next start draws the same picture, its seed is in the row.
            with contextlib.suppress(Exception):
                await asyncio.shield(self._release(content))
            raise
        except DATABASE_LOST:
            raise  # no end can be written now; the rescue takes it up again
        except ContractError as error:
            await self._fail(content, error.code, error.message, error.details)
        except MarkingFailed as error:
            await self._fail(content, ErrorCode.GENERATION_FAILED, str(error))
        except (JobFailed, StorageFailed) as error:
            await self._fail(content, error.code, error.message)
        except Exception:
            log.exception("content %s failed unexpectedly", content.id)
            await self._fail(
                content,
                ErrorCode.GENERATION_FAILED,
                "Something went wrong in the server; its log says what.",
            )

    async def _attempt(self, content: Content) -> None:
        if content.attempt > self._settings.job_max_attempts:
            raise JobFailed(
                ErrorCode.GENERATION_FAILED,
                f"given up after {content.attempt - 1} attempts that were interrupted",
            )
        log.info("content %s: attempt %d starts", content.id, content.attempt)
        if content.attempt > 1:
            await self._clear_earlier(content)
        clock = CallClock()
        outcome = await self._draw(content, clock)
        cold_start = clock.cold_start(outcome.result.timings.model_dump())
        images: list[Image] = []
        kept: bool | None = False
        try:
            for position, data in enumerate(outcome.images):
                image = _image(content, outcome.result, position, data)
                images.append(image)
                signed = await self._marking.picture(content, outcome.result, image, data)
                image.file_sha256 = hashlib.sha256(signed).hexdigest()
                image.size_bytes = len(signed)
                await self._storage.put(image.object_key, signed)
                await self._add_thumbnail(content, outcome.result, image, data)
            kept = None  # until the database answers, which it may do too late to be heard
            async with self._database.direct() as connection:
                kept = await AttemptRepository(connection).finish(
                    content.id,
                    content.attempt,
                    self._success(outcome, cold_start),
                    images,
                )
        finally:
            # What nobody knows is left: the next attempt or the sweep removes what has no row.
            if kept is False:
                await asyncio.shield(self._discard([key for image in images for key in image.keys]))
        if kept:
            log.info("content %s: attempt %d succeeded", content.id, content.attempt)
            self._on_end(content.id, Status.SUCCEEDED)
        else:
            log.warning("content %s: attempt %d came too late", content.id, content.attempt)

    async def _add_thumbnail(
        self, content: Content, result: GenerateResult, image: Image, data: bytes
    ) -> None:
        """Store a small copy beside the picture; a picture without one is whole all the same."""
        try:
            small = None
            if max(image.width, image.height) > THUMBNAIL_SIDE:
                small = await in_pool(Duty.IMAGES, make_thumbnail, data)
            image.likeness = await in_pool(Duty.IMAGES, likeness, small or data)
            if small is None:
                return
            key = image.object_key.removesuffix(".png") + ".webp"
            await self._storage.put(key, await self._marking.picture(content, result, image, small))
            image.thumbnail_key = key
        except (OSError, StorageFailed) as error:
            log.warning("%s: no thumbnail: %s", image.generation_id, type(error).__name__)

    async def _draw(self, content: Content, clock: CallClock) -> InferenceOutcome:
        drawing = asyncio.ensure_future(
            self._inference.generate(
                self._request_builder(content, clock),
                request_id=str(content.id),
                deadline_s=self._settings.modal_timeout_seconds,
                on_event=self._progress_writer(content, clock),
            )
        )
        self._drawing[content.id] = drawing
        try:
            return await drawing
        except asyncio.CancelledError:
            if content.id not in self._stopping:
                raise  # the server stops
            raise Cancelled("stopped while it was drawn") from None
        finally:
            drawing.cancel()
            self._drawing.pop(content.id, None)
            stopping = self._stopping.pop(content.id, None)
            if stopping is not None:
                stopping.cancel()

    def _progress_writer(
        self, content: Content, clock: CallClock
    ) -> Callable[[WorkerEvent], Awaitable[None]]:
        """Writes down what the worker tells, now and then; never fails the picture."""
        write_at: dict[str, float] = dict.fromkeys(
            ("progress", "preview"), time.monotonic() + _PROGRESS_SECONDS
        )

        async def write(event: WorkerEvent) -> None:
            clock.heard()
            data: dict[str, Any]
            if isinstance(event, ProgressEvent):
                data = event.model_dump(mode="json", exclude={"type"})
            elif isinstance(event, PreviewEvent) and len(event.image_base64) <= _PREVIEW_MAX_CHARS:
                data = {
                    "image": f"data:image/jpeg;base64,{event.image_base64}",
                    "step": event.step,
                }
            else:
                return
            now = time.monotonic()
            if now < write_at[event.type]:
                return
            write_at[event.type] = now + _PROGRESS_SECONDS
            with contextlib.suppress(*DATABASE_LOST):
                async with self._database.direct() as connection:
                    is_unwanted = await EventRepository(connection).add_passing(
                        content.id, content.attempt, event.type, data
                    )
                if is_unwanted:
                    self.stop(content.id)

        return write

    def _request_builder(
        self, content: Content, clock: CallClock
    ) -> Callable[[], Awaitable[GenerateRequest]]:
        """Builds the worker's request anew for each attempt: its URLs are signed at dispatch."""
        calls = itertools.count()

        async def build() -> GenerateRequest:
            if await self._is_unwanted(content, is_first=next(calls) == 0):
                raise Cancelled("stopped before it was drawn")
            request = GenerateRequest(
                prompt=content.prompt,
                negative_prompt=content.negative_prompt,
                loras=await self._lora_refs(content),
                timeout=max(1, min(TIMEOUT_MAX_S, int(self._settings.modal_timeout_seconds))),
                request_id=str(content.id),
                **content.parameters,
            )
            clock.sent()
            return request

        return build

    async def _is_unwanted(self, content: Content, is_first: bool) -> bool:
        """Whether somebody asked to stop it. Just after the claim its own row still says so."""
        if content.id in self._unwanted:
            return True
        if is_first:
            return content.cancel_requested_at is not None
        async with self._database.direct() as connection:
            return await AttemptRepository(connection).wants_stop(content.id)

    async def _lora_refs(self, content: Content) -> list[LoraRef]:
        if not content.loras:
            return []
        ids = [uuid.UUID(wanted["lora_model_id"]) for wanted in content.loras]
        async with self._database.session() as session:
            found = await LoraRepository(session, content.owner).get_many(ids)
        refs = []
        for lora_id, wanted in zip(ids, content.loras, strict=True):
            lora = found.get(lora_id)
            if lora is None:
                raise JobFailed(
                    ErrorCode.LORA_DOWNLOAD_FAILED, f"the LoRA {wanted['name']!r} was deleted"
                )
            refs.append(
                LoraRef(
                    url=self._storage.sign_get(lora.object_key, self._settings.lora_url_seconds),
                    scale=wanted["scale"],
                    sha256=lora.sha256,
                    name=lora.name,
                )
            )
        return refs

    def _success(self, outcome: InferenceOutcome, cold_start: float) -> dict[str, Any]:
        result = outcome.result
        timings = result.timings.model_dump()
        cost = price(timings, result.cost.gpu if result.cost else self._gpu(), cold_start)
        return {
            "status": Status.SUCCEEDED,
            "lora_reports": [report.model_dump(mode="json") for report in result.loras],
            "timings": timings,
            "model_clean": result.model_clean,
            "provider": outcome.provider,
            "provider_attempts": outcome.attempts,
            "cost_usd": cost.usd,
            "cost_gpu": cost.gpu,
            "cost_seconds": cost.seconds,
            "cost_parts": cost.parts,
            "error": None,
        }

    async def _fail(
        self, content: Content, code: str, message: str, details: Mapping[str, Any] | None = None
    ) -> None:
        # A worker's text is not ours: PostgreSQL's JSON holds no NUL and no half surrogates.
        message = message.replace("\x00", "").encode("utf-8", "replace").decode()[:2000]
        log.warning("content %s failed: %s: %s", content.id, code, message)
        status = Status.CANCELLED if code == ErrorCode.CANCELLED else Status.FAILED
        error = {"code": str(code), "message": message, "details": _facts(details)}
        values = {"status": status, "error": error}
        async with self._database.direct() as connection:
            kept = await AttemptRepository(connection).finish(content.id, content.attempt, values)
        if kept:
            self._on_end(content.id, status)

    async def _release(self, content: Content) -> None:
        async with self._database.direct() as connection:
            await AttemptRepository(connection).release(content.id, content.attempt)

    async def _clear_earlier(self, content: Content) -> None:
        """Remove what attempts that died had stored: the fence keeps them from naming it."""
        try:
            for key in await self._storage.keys(_folder(content)):
                attempt = key.rpartition("/")[2].partition("-")[0]
                if attempt.isdecimal() and int(attempt) < content.attempt:
                    await self._storage.delete(key)
        except StorageFailed:
            log.warning("content %s: leftovers could not be removed", content.id)

    async def _discard(self, keys: list[str]) -> None:
        for key in keys:
            with contextlib.suppress(StorageFailed):
                await self._storage.delete(key)


def _facts(details: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of an error's details is kept with the content: short, and nothing but what is known."""
    kept: dict[str, Any] = {}
    for name in _KEPT_DETAILS & set(details or {}):
        value = (details or {})[name]
        if isinstance(value, str):
            kept[name] = value.replace("\x00", "").encode("utf-8", "replace").decode()[:200]
        elif isinstance(value, bool | int) and abs(value) < 2**53:
            kept[name] = value
    return kept


def _folder(content: Content) -> str:
    return f"owners/{content.owner}/images/{content.id}"


def _image(content: Content, result: GenerateResult, position: int, data: bytes) -> Image:
    """The row of one picture; its key names the attempt, so that two attempts never collide."""
    seeds = [image.seed for image in result.images] or result.metadata.seeds
    first = result.metadata.seed_used
    width, height = result.image_size
    name = f"{content.attempt}-{position}-{uuid.uuid4().hex[:8]}.png"
    key = f"{_folder(content)}/{name}"
    return Image(
        id=uuid.uuid4(),
        generation_id=content.id,
        position=position,
        object_key=key,
        seed=seeds[position] if position < len(seeds) else first + position,
        width=width,
        height=height,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        media_type="image/png",
        created_at=utc_now(),
    )
