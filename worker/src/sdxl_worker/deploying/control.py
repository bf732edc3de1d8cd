"""The fleet's control: health, states, cancels and metrics without a GPU.

Duty: the worker's own routes, but the drawing one, answered from the board that the containers
write (`board.py`): at once while every container draws, and without starting one.
Must not know: Modal, torch, how a picture is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from pydantic import SecretStr, ValidationError

from sdxl_contract.errors import GenerationFailed
from sdxl_contract.result import CachedLora, Health, HealthStatus
from sdxl_worker import __version__
from sdxl_worker.answering.http import RequestState, answer_errors, error_answer, json_answer
from sdxl_worker.deploying.board import (
    MODEL,
    NOTE,
    NOTE_SECONDS,
    REPORT,
    TELL_SECONDS,
    Board,
    Report,
)
from sdxl_worker.guard import AnswerHeaders, TokenGuard

log = structlog.get_logger()
# A container that has not told for so long has ended without saying so.
_FRESH_S = 3 * TELL_SECONDS
_LOADING_S = 180.0
# Longer than any failed start counts.
_STALE_S = 2 * 3600.0
# A request that was posted just now is on the board within this.
_SECOND_LOOK_S = 0.8


class Fleet:
    """The containers, by what the board says at `now` (Unix time).

    Args:
        failed_s: for how long a start that failed counts; then another may be tried.
    """

    def __init__(self, items: Mapping[str, str], now: float, failed_s: float) -> None:
        self.model: Report | None = None
        self.stale = [key for key, text in items.items() if _is_stale(key, text, now)]
        reports: dict[str, Report] = {}
        for key, text in items.items():
            report = _read(text) if key == MODEL or key.startswith(REPORT) else None
            if report is None:
                continue
            if key == MODEL:
                self.model = report
            else:
                reports[key.removeprefix(REPORT)] = report
        lasts = {
            HealthStatus.READY: _FRESH_S,
            HealthStatus.LOADING: _LOADING_S,
            HealthStatus.FAILED: failed_s,
        }
        self.containers = {
            name: report
            for name, report in sorted(reports.items())
            if now - report.at < lasts[report.health.status]
        }

    def _with(self, status: HealthStatus) -> list[Report]:
        return [one for one in self.containers.values() if one.health.status is status]

    def health(self, *, include_modules: bool) -> Health:
        """The fleet as one worker: ready where a request would be drawn, be it after a start."""
        ready = self._with(HealthStatus.READY)
        # One that failed after it had served is replaced by a start that nothing speaks against.
        failed = [one for one in self._with(HealthStatus.FAILED) if not one.served]
        known = self.model.health if self.model is not None else None
        if not ready and failed:
            return failed[-1].health
        if not ready and known is None:
            if loading := self._with(HealthStatus.LOADING):
                return loading[-1].health
            # No container has ever run: nothing is known, and the first request starts one.
            return Health(status=HealthStatus.READY, version=__version__)
        health = ready[-1].health if ready else known
        assert health is not None
        loras = {one.sha256: one for report in ready for one in report.health.cached_loras}
        starts = [report.health.start for report in ready if report.health.start is not None]
        changes: dict[str, object] = {
            # The one that did not go as it was meant to, where there is one.
            "start": next((one for one in starts if one.fell_back), starts[-1] if starts else None),
            "cached_loras": [loras[name] for name in sorted(loras)],
            "queue_length": sum(report.health.queue_length for report in ready),
        }
        if health.signature is not None:
            modules = known.signature.modules if known and known.signature else {}
            shown = modules if include_modules else {}
            changes["signature"] = health.signature.model_copy(update={"modules": shown})
        return health.model_copy(update=changes)

    def state(self, request_id: str) -> str:
        """`running`, `succeeded` (a repeated call may get the kept result) or `unknown`."""
        if any(request_id in one.running for one in self.containers.values()):
            return "running"
        kept = any(request_id in one.kept for one in self.containers.values())
        return "succeeded" if kept else "unknown"

    def metrics(self) -> bytes:
        """Every container's figures, each with the container's name, in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(_Merged(self.containers))
        return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, containers: Mapping[str, Report]) -> None:
        self._containers = containers

    def collect(self) -> Iterable[Metric]:
        """One family for each name, with the samples of all containers."""
        count = GaugeMetricFamily("sdxl_worker_containers", "Containers by state", labels=["state"])
        for status in HealthStatus:
            found = sum(one.health.status is status for one in self._containers.values())
            count.add_metric([status.value], found)
        merged: dict[str, Metric] = {count.name: count}
        for name, report in self._containers.items():
            for family in _families(report.metrics):
                one = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    one.samples.append(sample._replace(labels={**sample.labels, "container": name}))
        return merged.values()


def _families(text: str) -> Iterator[Metric]:
    try:
        yield from text_string_to_metric_families(text)
    except ValueError:
        log.warning("metrics_not_read")


def _is_stale(key: str, text: str, now: float) -> bool:
    """Whether nobody will come back to it: a container that was killed, a note nobody took."""
    if key.startswith(NOTE):
        return now - float(text) > NOTE_SECONDS
    report = _read(text) if key.startswith(REPORT) else None
    return report is not None and now - report.at > _STALE_S


def _read(text: str) -> Report | None:
    try:
        return Report.model_validate_json(text)
    except ValidationError:  # another version's
        return None


def create_control_app(
    board: Board,
    token: SecretStr | None,
    *,
    failed_start_s: float,
    clock: Callable[[], float] = time.time,
    second_look_s: float = _SECOND_LOOK_S,
) -> FastAPI:
    """The control's ASGI app.

    Args:
        board: that the containers write.
        token: the worker's bearer token.
        failed_start_s: see `Fleet`.
    """
    app = FastAPI(
        title="SDXL LoRA worker: control",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(AnswerHeaders)
    answer_errors(app)
    guard = TokenGuard(token)

    async def fleet() -> Fleet:
        found = Fleet(await board.items(), clock(), failed_start_s)
        for key in found.stale:
            await board.pop(key)
        return found

    async def found(request_id: str) -> str:
        """The request's state; one that may just have been posted is looked for twice."""
        state = (await fleet()).state(request_id)
        if state == "unknown":
            await asyncio.sleep(second_look_s)
            state = (await fleet()).state(request_id)
        return state

    @app.exception_handler(Exception)
    async def _unexpected(_request: Request, error: Exception) -> Response:
        log.error("unexpected_error", error=repr(error))
        return error_answer(GenerationFailed("internal error"))

    @app.get("/health")
    async def health(request: Request, include: str = "") -> Response:
        """Whether a request would be drawn; 503 unless ready. No container is started for it."""
        guard.refuse_pages(request)
        state = (await fleet()).health(include_modules="modules" in include.split(","))
        if not guard.has_token(request):
            no_loras: list[CachedLora] = []
            state = state.model_copy(update={"cached_loras": no_loras})
        ready = state.status is HealthStatus.READY
        # Only what is known: a limit that nobody stated is none.
        return Response(
            state.model_dump_json(exclude_none=True, exclude_unset=True),
            status_code=200 if ready else 503,
            media_type="application/json",
        )

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """All containers' figures."""
        guard.authorise(request)
        text = (await fleet()).metrics()
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.get("/requests/{request_id}")
    async def request_state(request: Request, request_id: str) -> Response:
        """`running`, `succeeded` or `unknown`, whichever container has it."""
        guard.authorise(request)
        return json_answer(RequestState(request_id=request_id, state=await found(request_id)))

    @app.post("/requests/{request_id}/cancel", status_code=202)
    async def cancel(request: Request, request_id: str) -> Response:
        """Have a running request stopped by the container that draws it, within a second."""
        guard.authorise(request)
        state = "unknown"
        if await found(request_id) == "running":
            await board.put(NOTE + request_id, str(clock()))
            state = "cancelling"
        return json_answer(RequestState(request_id=request_id, state=state), 202)

    return app
