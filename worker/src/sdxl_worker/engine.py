"""One request's life: fetch, apply, draw, restore; the single lane.

Duty: the order of things. LoRAs are fetched and parsed while another request holds the lane; on
the lane a request applies, draws and restores, and nothing else gets in until the restore has been
verified. Must not know: HTTP, buckets, users.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from sdxl_contract.errors import (
    ContractError,
    CudaOutOfMemory,
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
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
)
from sdxl_worker import __version__
from sdxl_worker.answering.result import MEDIA_TYPES, Answer
from sdxl_worker.assembly import Ready, assemble
from sdxl_worker.drawing.drawer import Drawn, image_seeds
from sdxl_worker.drawing.prompt_syntax import parse_weights
from sdxl_worker.drawing.schedulers import scheduler_name
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.fetching.lora_source import Origin, lora_report
from sdxl_worker.line.lane import Lane
from sdxl_worker.line.registry import Job, Registry
from sdxl_worker.loading.gpu_memory import is_out_of_memory, let_go, too_little_for
from sdxl_worker.loading.pipeline import LoadedModel, load_model
from sdxl_worker.lora import ModelCorrupted, ParsedLora, content_key
from sdxl_worker.settings import Settings
from sdxl_worker.watching.metrics import Metrics
from sdxl_worker.watching.timings import Stopwatch

log = structlog.get_logger()
T = TypeVar("T")
_LOOK_S = 0.1
_SECONDS_GUESSED = 10.0


async def _unless_stopped(job: Job, work: Awaitable[T]) -> T:
    """What `work` gives; stops waiting for it at the job's deadline or cancellation."""
    task = asyncio.ensure_future(work)
    while True:
        done, _ = await asyncio.wait({task}, timeout=_LOOK_S)
        if done:
            return task.result()
        try:
            job.token.check()
        except ContractError:
            task.cancel()
            raise


class Engine:
    """The worker without its HTTP face. Lives on one event loop.

    Args:
        settings: the worker's.
        load: gives the model; `load_model` unless a test brings its own.
        fetcher: downloads; made from the settings unless a test brings its own.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Settings], LoadedModel] = load_model,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._settings = settings
        self._load_model = load
        self._ready: Ready | None = None
        self._failure: ContractError | None = None
        self.metrics = Metrics()
        self.jobs = Registry(settings.result_keep_seconds, settings.result_keep_bytes)
        self._lane = Lane(settings.same_lora_run_max)
        self._waiting = 0
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
        """Load the model, once; after a failure `health` says why."""
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

    def _build(self) -> Ready:
        return assemble(self._settings, self._load_model(self._settings), self._fetcher)

    async def aclose(self) -> None:
        """Cancel what runs, wait for the lane to be clean, close connections."""
        self.jobs.cancel_all()
        await asyncio.to_thread(self._lane.close)
        await self._fetcher.aclose()

    def health(self, *, include_modules: bool = False) -> Health:
        """What `GET /health` says."""
        common = {"version": __version__, "queue_length": self._waiting}
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
            device=str(ready.model.device),
            gpu=ready.gpu,
            dtype=str(ready.model.dtype).removeprefix("torch."),
            limits=ready.limits,
            signature=signature,
            cached_loras=[CachedLora(sha256=s, bytes=n) for s, n in ready.cache.contents()],
            **common,
        )

    def metrics_text(self) -> bytes:
        """What `GET /metrics` says."""
        ready = self._ready
        self.metrics.holdings(
            queue_length=self._waiting,
            cache=ready.cache.stats if ready is not None else None,
            disk=ready.disk.stats if ready is not None and ready.disk is not None else None,
        )
        return self.metrics.text()

    # --- a request's life ---------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> Job:
        """Accept `request`, or join the running or kept one with its request_id.

        Raises:
            ContractError: it is not acceptable, the model is not there, or the line is full.
        """
        if self._failure is not None:
            raise self._failure
        if self._ready is None:
            raise ModelLoadFailed("the base model is still loading", retry_after=5.0)
        joined = self.jobs.find(request)
        if joined is not None:
            return joined
        request.check_limits(self._ready.limits)
        parse_weights(request.prompt)
        parse_weights(request.negative_prompt, "negative_prompt")
        if self._waiting >= self._settings.queue_max:
            raise Overloaded(
                f"{self._waiting} requests are waiting: the line is full",
                details={"queue_length": self._waiting},
                retry_after=round(max(1.0, self._waiting * self._seconds_per_request / 2), 1),
            )
        job = Job(request, request.request_id or uuid.uuid4().hex)
        ready = self._ready
        self.jobs.start(job, lambda j: asyncio.create_task(self._live(j, ready)))
        return job

    async def _live(self, job: Job, ready: Ready) -> GenerateResult:
        """`_run`, counted and logged, with every foreign error mapped once."""
        started = time.perf_counter()
        bound = log.bind(request_id=job.request_id)
        outcome = "ok"
        try:
            return await self._run(job, ready, started)
        except ContractError as error:
            outcome = error.code.value
            bound.warning("request_failed", code=outcome, error=error.message)
            raise
        except Exception as error:
            outcome = "GENERATION_FAILED"
            bound.exception("request_failed")
            raise GenerationFailed("the picture could not be made: an internal error") from error
        finally:
            seconds = time.perf_counter() - started
            self.metrics.request_done(outcome, seconds)
            if outcome == "ok":
                bound.info("request_done", seconds=round(seconds, 3))

    async def _run(self, job: Job, ready: Ready, started: float) -> GenerateResult:
        request, token = job.request, job.token
        watch = Stopwatch(ready.model.device)
        self._waiting += 1
        waiting = True

        def left_the_line() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                self._waiting -= 1

        def on_phase(phase: Phase) -> None:
            job.emit(ProgressEvent(phase=phase, steps=request.steps * request.num_images))

        try:
            job.emit(QueuedEvent(position=self._waiting - 1))
            refs = request.lora_refs()
            loras = await self._fetch_all(job, ready, watch, on_phase)
            reports = [
                lora_report(lora, ref, origin)
                for (lora, origin), ref in zip(loras, refs, strict=True)
            ]
            for _, origin in loras:
                self.metrics.lora_cache.labels(origin).inc()
            seed = (
                request.seed if request.seed is not None else int.from_bytes(os.urandom(4), "big")
            )
            seeds = image_seeds(seed, request.num_images)
            queued = time.perf_counter()
            loop = asyncio.get_running_loop()

            pairs = [(lora, ref.scale) for (lora, _), ref in zip(loras, refs, strict=True)]

            def on_lane(hand_over: Callable[[], bool]) -> tuple[list[Drawn], bool]:
                watch.add(Phase.QUEUE, time.perf_counter() - queued)
                loop.call_soon_threadsafe(left_the_line)
                return self._on_lane(job, ready, pairs, seeds, watch, on_phase, hand_over)

            key = content_key(pairs) or None
            drawn, clean = await self._lane.run(key, on_lane, token.check)
        finally:
            left_the_line()
        token.check()
        answer = Answer(
            request=request,
            request_id=job.request_id,
            drawn=drawn,
            reports=reports,
            base_model=ready.model.name,
            scheduler=scheduler_name(request.scheduler, ready.drawer.own_scheduler),
            gpu=ready.gpu,
            usd_per_second=self._settings.usd_per_second,
            clean=clean,
        )
        on_phase(Phase.IMAGE_ENCODE)
        with watch.phase(Phase.IMAGE_ENCODE):
            files = await asyncio.to_thread(answer.files)
        if request.output_url is not None:
            on_phase(Phase.UPLOAD)
            with watch.phase(Phase.UPLOAD):
                media_type = MEDIA_TYPES[request.output_format.value]
                upload = self._fetcher.upload(request.output_url, files[0], media_type)
                await _unless_stopped(job, upload)
        timings = watch.timings()
        self.metrics.phases(timings)
        return answer.result(files, timings, started)

    async def _fetch_all(
        self, job: Job, ready: Ready, watch: Stopwatch, on_phase: Callable[[Phase], None]
    ) -> list[tuple[ParsedLora, Origin]]:
        """The request's LoRAs, all at once; also looks at where the picture is to go."""
        request = job.request
        if request.output_url is not None:
            await _unless_stopped(job, self._fetcher.check_output(request.output_url))
        found = asyncio.gather(
            *(ready.source.get(ref, watch, on_phase) for ref in request.lora_refs())
        )
        try:
            return list(await _unless_stopped(job, found))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(request, ready, error) from error
            raise

    def _on_lane(
        self,
        job: Job,
        ready: Ready,
        loras: list[tuple[ParsedLora, float]],
        seeds: list[int],
        watch: Stopwatch,
        on_phase: Callable[[Phase], None],
        hand_over: Callable[[], bool],
    ) -> tuple[list[Drawn], bool]:
        """Apply, draw, restore, verify. Runs on the lane's thread, alone.

        Returns:
            The pictures, and whether the model is restored and verified: not where the next
            request takes over the LoRA set that is applied; that one then restores it.
        """
        request, token = job.request, job.token
        if self._failure is not None:
            raise self._failure
        begun = time.monotonic()
        handed_over = False

        def on_step(done: int, total: int, preview: Callable[[], str] | None) -> None:
            token.check()
            spent = time.monotonic() - begun
            job.emit(
                ProgressEvent(
                    phase=Phase.DENOISE,
                    step=done,
                    steps=total,
                    eta_seconds=round(spent / done * (total - done), 2),
                )
            )
            if preview is not None and job.has_listeners:
                job.emit(PreviewEvent(image_base64=preview(), step=done))

        try:
            token.check()
            on_phase(Phase.APPLY)
            try:
                with watch.phase(Phase.APPLY):
                    report = ready.patcher.apply(loras, should_stop=token.check)
                self.metrics.swaps.labels(report.kind.value).inc()
                drawn = ready.drawer.draw(
                    request,
                    request.size(ready.limits),
                    seeds,
                    watch=watch,
                    on_phase=on_phase,
                    on_step=on_step,
                    should_stop=token.check,
                )
                handed_over = hand_over()
                return drawn, not handed_over
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise self._out_of_memory(request, ready, error) from error
                raise
        finally:
            if not handed_over:
                self._restore(ready, watch, on_phase)
            self._learn_speed(time.monotonic() - begun)

    def _learn_speed(self, seconds: float) -> None:
        known = self._seconds_per_request
        first = known == _SECONDS_GUESSED
        self._seconds_per_request = seconds if first else known + 0.2 * (seconds - known)

    def _restore(self, ready: Ready, watch: Stopwatch, on_phase: Callable[[Phase], None]) -> None:
        """Put the model back and verify it; a model that cannot be put back ends the service."""
        on_phase(Phase.RESTORE)
        try:
            with watch.phase(Phase.RESTORE):
                report = ready.patcher.restore()
            self.metrics.restores.inc()
            self.metrics.restored_bytes.inc(report.nbytes)
        except Exception as error:
            self._failure = (
                error
                if isinstance(error, ModelCorrupted)
                else ModelLoadFailed("the model could not be put back after a request")
            )
            log.exception("model_not_restored")
            raise self._failure from error

    def _out_of_memory(
        self, request: GenerateRequest, ready: Ready, error: BaseException
    ) -> CudaOutOfMemory:
        """What the caller is told; before the restore, which needs some memory itself."""
        ready.cache.clear()
        let_go(error)
        return too_little_for(request, ready.limits)
