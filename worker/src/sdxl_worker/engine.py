"""One request's life: fetch, apply, draw, restore; the single lane.

Duty: the order of things. LoRAs are fetched and parsed while another request holds the lane; on
the lane a request applies, draws and restores, and nothing else gets in until the restore has been
verified. Must not know: HTTP, buckets, users.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import structlog

from sdxl_contract.errors import (
    ContractError,
    GenerationFailed,
    ModelLoadFailed,
    Overloaded,
)
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import (
    CachedLora,
    GenerateResult,
    Health,
    HealthStatus,
    Phase,
    QueuedEvent,
    StartReport,
)
from sdxl_worker import __version__
from sdxl_worker.answering.result import MEDIA_TYPES, Answer
from sdxl_worker.assembly import Assembly, assemble
from sdxl_worker.drawing.drawer import Drawn
from sdxl_worker.drawing.schedulers import offered_schedulers, scheduler_name
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.line.lane import Lane
from sdxl_worker.line.registry import Registry
from sdxl_worker.loading.gpu_memory import too_little_for
from sdxl_worker.loading.pipeline import LoadedModel, load_model
from sdxl_worker.lora import ModelCorrupted, RestoreReport, content_key
from sdxl_worker.out_of_memory import is_out_of_memory, let_go
from sdxl_worker.run import Run
from sdxl_worker.settings import Settings
from sdxl_worker.watching.metrics import Metrics

log = structlog.get_logger()
T = TypeVar("T")
_SECONDS_GUESSED = 10.0


class Engine:
    """The worker without its HTTP face. Lives on one event loop.

    Args:
        settings: the worker's.
        load: gives the model; `load_model` unless a test brings its own.
        fetcher: downloads; made from the settings unless a test brings its own.
        once_ready: called when all is loaded, before the first request.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Settings], LoadedModel] = load_model,
        fetcher: Fetcher | None = None,
        once_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._once_ready = once_ready
        self._load_model = load
        self._ready: Assembly | None = None
        self._failure: ContractError | None = None
        # Set by whoever starts it and knows.
        self.start: StartReport | None = None
        self.metrics = Metrics()
        self.runs = Registry(settings.result_keep_seconds, settings.result_keep_bytes)
        self._lane = Lane(settings.same_lora_run_max)
        # Of the lane's recent work; a guess until there was some.
        self._seconds_per_request = _SECONDS_GUESSED
        self._fetcher = fetcher or Fetcher(
            FetchPolicy(
                max_bytes=settings.lora_max_bytes,
                timeout_s=settings.lora_download_timeout_seconds,
                min_bytes_per_second=settings.lora_min_bytes_per_second,
                allow_loopback=settings.lora_allow_loopback,
                allowed_hosts=settings.lora_allowed_hosts,
            )
        )

    # --- its own life -------------------------------------------------------------------------

    async def load(self) -> None:
        """Load the model, once; after a failure `health` explains why."""
        if self._ready is not None:
            return
        try:
            self._ready = await self._lane.call(self._build)
        except ContractError as error:
            self._failure = error
            log.error("model_load_failed", error=error.message, cause=repr(error.__cause__))
        except Exception as error:
            self._failure = ModelLoadFailed("the base model could not be loaded")
            log.error("model_load_failed", error=repr(error))
        else:
            log.info("model_ready", base_model=self._ready.model.name, gpu=self._ready.gpu)

    def _build(self) -> Assembly:
        ready = assemble(self._settings, self._load_model(self._settings), self._fetcher)
        self._once_ready()
        return ready

    async def look(self, look: Callable[[Assembly], T]) -> T:
        """What `look` finds of the loaded worker, between requests.

        Raises:
            ModelLoadFailed: it is not loaded.
        """
        ready = self._ready
        if ready is None:
            raise self._failure or ModelLoadFailed("the base model is still loading")
        return await self._lane.call(lambda: look(ready))

    async def aclose(self) -> None:
        """Cancel what runs, wait for the lane to be clean, close connections."""
        self.runs.cancel_all()
        await asyncio.to_thread(self._lane.close)
        await self._fetcher.aclose()

    def health(self, *, include_modules: bool = False) -> Health:
        """The answer of `GET /health`."""
        common: dict[str, Any] = {
            "version": __version__,
            "queue_length": self.runs.waiting,
            "start": self.start,
        }
        if self._failure is not None:
            return Health(status=HealthStatus.FAILED, error=self._failure.body(), **common)
        if self._ready is None:
            return Health(status=HealthStatus.LOADING, **common)
        ready = self._ready
        signature = ready.signature
        if not include_modules:
            signature = signature.model_copy(update={"modules": {}})
        return Health(
            status=HealthStatus.READY,
            base_model=ready.model.name,
            weights=ready.known_weights,
            device=str(ready.model.device),
            gpu=ready.gpu,
            dtype=str(ready.model.dtype).removeprefix("torch."),
            draw_speed=ready.drawer.speed,
            speeds_unavailable=ready.drawer.speeds_unavailable,
            limits=ready.limits,
            schedulers=offered_schedulers(),
            signature=signature,
            cached_loras=[CachedLora(sha256=s, bytes=n) for s, n in ready.cache.contents()],
            **common,
        )

    def metrics_text(self) -> bytes:
        """The answer of `GET /metrics`."""
        ready = self._ready
        self.metrics.holdings(
            queue_length=self.runs.waiting,
            cache=ready.cache.stats if ready is not None else None,
            disk=ready.disk.stats if ready is not None and ready.disk is not None else None,
            graph_bytes=ready.drawer.graph_bytes if ready is not None else 0,
        )
        return self.metrics.text()

    # --- a request's life ---------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> Run:
        """Accept `request`, or join the running or kept one with its request_id.

        Raises:
            ContractError: it is not acceptable, the model is not there, or the line is full.
        """
        if self._failure is not None:
            raise self._failure
        if self._ready is None:
            raise ModelLoadFailed("the base model is still loading", retry_after=5.0)
        joined = self.runs.find(request)
        if joined is not None:
            return joined
        request.check_limits(self._ready.limits)
        request.check_prompts()
        waiting = self.runs.waiting
        if waiting >= self._settings.queue_max:
            raise Overloaded(
                f"{waiting} requests are waiting: the queue is full",
                details={"queue_length": waiting},
                retry_after=round(max(1.0, waiting * self._seconds_per_request / 2), 1),
            )
        in_flight = self._ready.source.budget
        if in_flight.held >= in_flight.limit and (request.lora_refs() or request.pictures()):
            raise Overloaded(
                "the files of waiting requests fill the memory that is kept for downloads",
                details={"bytes_in_flight": in_flight.held},
                retry_after=round(max(1.0, self._seconds_per_request), 1),
            )
        run = Run(request, device=self._ready.model.device)
        self.runs.start(run, self._live(run, self._ready))
        run.emit(QueuedEvent(position=waiting))
        return run

    async def admit(self, request: GenerateRequest) -> Run:
        """`submit`; a caller that joins another's run with other URLs shows that they work, too.

        Raises:
            ContractError: as `submit`, or the URL of a LoRA or a picture is refused.
        """
        run = self.submit(request)
        if run.request is request or same_files(request, run.request):
            return run
        assert self._ready is not None
        source, proving = self._ready.source, Run(request)
        with source.budget.share() as share:
            await proving.until(source.get_all(proving, share))
            await proving.until(self._ready.pictures.get(proving, share))
            await proving.until(self._ready.embeddings.get_all(proving, share))
        # The run may have ended meanwhile, or been left.
        return self.submit(request)

    async def _live(self, run: Run, ready: Assembly) -> GenerateResult:
        """`_answer`, counted and logged, with every foreign error mapped once."""
        bound = log.bind(request_id=run.id)
        outcome = "ok"
        try:
            return await self._answer(run, ready)
        except ContractError as error:
            outcome = error.code.value
            bound.warning("request_failed", code=outcome, error=error.message)
            raise
        except Exception as error:
            outcome = "GENERATION_FAILED"
            bound.exception("request_failed")
            raise GenerationFailed("the image could not be generated: internal error") from error
        finally:
            run.loras.clear()  # a kept result needs no weights
            run.embeddings.clear()
            run.canvas = None
            run.control_pictures, run.reference_pictures = [], []
            seconds = time.perf_counter() - run.started
            self.metrics.request_done(outcome, seconds)
            if outcome == "ok":
                bound.info("request_done", seconds=round(seconds, 3))

    async def _answer(self, run: Run, ready: Assembly) -> GenerateResult:
        """Fetch, line up, draw, encode, upload, answer."""
        request = run.request
        places = request.places()
        for field, url in places:
            await run.until(self._fetcher.check_output(url, field))
        # Until the pictures are drawn: then nothing here holds the files any more.
        with ready.source.budget.share() as share:
            with self._memory_guard(run, ready):
                # The picture first: it is small, and most often what is wrong.
                run.canvas = await run.until(ready.pictures.get(run, share))
                run.embeddings.extend(await run.until(ready.embeddings.get_all(run, share)))
                run.loras.extend(await run.until(ready.source.get_all(run, share)))
            for lora in run.loras:
                self.metrics.lora_cache.labels(lora.origin).inc()

            run.line_up()
            key = content_key(run.scaled_loras) or None
            drawn = await self._lane.run(key, partial(self._draw, run, ready), run.until)
        run.check()
        safety = None
        if ready.checker is not None:
            pictures = [one.image for one in drawn]
            with run.phase(Phase.SAFETY):
                # Beside the lane: the next request is drawn meanwhile.
                safety = await asyncio.to_thread(ready.checker.check, pictures)
            run.check()

        # Known long before the first picture is drawn; a wait would not be the loop's.
        weights = ready.known_weights
        if weights is None:
            weights = await asyncio.to_thread(ready.which_weights)
        answer = Answer(
            run=run,
            drawn=drawn,
            reports=[lora.report() for lora in run.loras],
            base_model=ready.model.name,
            weights=weights,
            scheduler=scheduler_name(request.scheduler, ready.drawer.own_scheduler),
            gpu=ready.gpu,
            usd_per_second=self._settings.usd_per_second,
            safety=safety,
        )
        with run.phase(Phase.IMAGE_ENCODE):
            files = await asyncio.to_thread(answer.files)
        if places:
            media_type = MEDIA_TYPES[request.output_format.value]
            with run.phase(Phase.UPLOAD):
                for (field, url), data in zip(places, files, strict=True):
                    await run.until(self._fetcher.upload(url, data, media_type, field))
        self.metrics.phases(run.timings())
        # Base64 and checksums of megabytes are not for the thread that answers everybody.
        return await asyncio.to_thread(answer.result, files)

    def _draw(self, run: Run, ready: Assembly, hand_over: Callable[[], bool]) -> list[Drawn]:
        """Apply, draw, restore, verify. Runs on the lane's thread, alone.

        The model is not restored where the next request takes over the LoRA set that is applied;
        that one then restores it.
        """
        if self._failure is not None:
            raise self._failure
        run.begin()

        @contextmanager
        def phase(phase: Phase) -> Iterator[None]:
            with run.phase(phase), self._memory_guard(run, ready, on_lane=True):
                yield

        def restored(report: RestoreReport) -> None:
            run.clean = True
            self.metrics.restores.inc()
            self.metrics.restored_bytes.inc(report.nbytes)

        try:
            with (
                # Outermost: whatever becomes of the weights, nothing else may stay behind.
                self._structure_verified(run, ready),
                ready.patcher.applied(
                    run.scaled_loras,
                    check=run.check,
                    phase=phase,
                    hand_over=hand_over,
                    restored=restored,
                ) as swap,
                # Inside: a restore needs some memory itself.
                self._memory_guard(run, ready, on_lane=True),
            ):
                self.metrics.swaps.labels(swap.kind.value).inc()
                return ready.drawer.draw(run)
        except ModelCorrupted as error:
            self._failure = error
            log.exception("model_not_restored")
            raise
        finally:
            self.metrics.model_calls(ready.drawer.counts)
            self._learn_speed(run.seconds_on_lane)

    @contextmanager
    def _structure_verified(self, run: Run, ready: Assembly) -> Iterator[None]:
        try:
            yield
        finally:
            ready.structure.verify()
            ready.shelf.verify()
            run.structure_clean = True

    def _learn_speed(self, seconds: float) -> None:
        known = self._seconds_per_request
        first = known == _SECONDS_GUESSED
        self._seconds_per_request = seconds if first else known + 0.2 * (seconds - known)

    @contextmanager
    def _memory_guard(self, run: Run, ready: Assembly, *, on_lane: bool = False) -> Iterator[None]:
        """Frees what can be freed when memory runs out, and names what needs less of it.

        Args:
            on_lane: whether the block is the lane's: what another request may be drawing with is
                left alone elsewhere.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            ready.cache.clear()
            let_go(error)
            if on_lane:
                ready.shelf.clear()
                ready.drawer.drop_recordings()
            raise too_little_for(run.request, ready.limits, run.size(ready.limits)) from error


def same_files(one: GenerateRequest, other: GenerateRequest) -> bool:
    """Whether two requests fetch by the very same URLs, signatures included."""
    return (
        one.lora_refs() == other.lora_refs()
        and one.pictures() == other.pictures()
        and one.embeddings == other.embeddings
    )
