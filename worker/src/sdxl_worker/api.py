"""The worker's HTTP face.

Duty: authentication, JSON and server-sent events, one shape for every error, and noticing that a
client has gone. Must not know: how a picture is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel

from sdxl_contract.errors import (
    Cancelled,
    ContractError,
    ErrorBody,
    GenerationFailed,
    ImageDownloadFailed,
    InvalidRequest,
    LoraDownloadFailed,
)
from sdxl_contract.reference_page import HEADERS, reference_page
from sdxl_contract.request import GenerateRequest, parse_request
from sdxl_contract.result import ErrorEvent, GenerateResult, HealthStatus, ResultEvent
from sdxl_worker import __version__
from sdxl_worker.answering.http import RequestState, answer_errors, error_answer, json_answer
from sdxl_worker.engine import Engine, same_files
from sdxl_worker.guard import AnswerHeaders, TokenGuard
from sdxl_worker.run import Run, too_late
from sdxl_worker.settings import Settings

log = structlog.get_logger()
_BODY_MAX_BYTES = 1 << 20
_BODY_SECONDS = 60.0
_PING_S = 10.0
# A run says itself that its time is over; this much later its callers no longer wait for that.
_GRACE_S = 5.0


def create_app(
    engine: Engine, settings: Settings, beside: Callable[[], Awaitable[None]] | None = None
) -> FastAPI:
    """The worker's ASGI app around `engine`; loads the model in the background when it starts.

    Args:
        beside: runs as long as the app does, on the engine's loop.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(engine.load())]
        if beside is not None:
            tasks.append(asyncio.ensure_future(beside()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await engine.aclose()

    app = FastAPI(
        title="SDXL LoRA worker",
        version=__version__,
        lifespan=lifespan,
        # The framework's pages run another server's scripts, and ask for no token.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(AnswerHeaders)

    guard = TokenGuard(settings.worker_api_token)

    answer_errors(app)

    @app.exception_handler(Exception)
    async def _unexpected(_request: Request, error: Exception) -> Response:
        log.error("unexpected_error", error=repr(error))
        return error_answer(GenerationFailed("internal error"))

    @app.post(
        "/generate-image",
        response_model=GenerateResult,
        responses={code: {"model": ErrorBody} for code in (400, 401, 422, 429, 500, 503, 504, 507)},
    )
    async def generate_image(request: Request) -> Response:
        """Draw a picture. With `Accept: text/event-stream` progress comes first."""
        try:
            guard.authorise(request, has_body=True)
            asked = parse_request(await _read_body(request))
            run = await engine.admit(asked)
        except ContractError as error:
            engine.metrics.request_refused(error.code.value)
            raise
        structlog.contextvars.bind_contextvars(request_id=run.id)
        if "text/event-stream" in request.headers.get("accept", ""):
            return EventSourceResponse(
                _events(run),
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        try:
            return json_answer(await _result_or_gone(run, request, asked))
        except (LoraDownloadFailed, ImageDownloadFailed):
            if run.request is asked or same_files(run.request, asked):
                raise
            # Another's URL failed, and this caller's was found to work.
            return json_answer(await _result_or_gone(await engine.admit(asked), request, asked))

    @app.get("/health")
    async def health(request: Request, include: str = "") -> Response:
        """Whether the worker is ready, and what it can do; 503 unless ready. Which LoRAs it holds
        is shown to whoever has the token."""
        guard.refuse_pages(request)
        state = engine.health(include_modules="modules" in include.split(","))
        if not guard.has_token(request):
            state = state.model_copy(update={"cached_loras": []})
        return json_answer(state, 200 if state.status is HealthStatus.READY else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus' text format."""
        guard.authorise(request)
        return Response(engine.metrics_text(), media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        """The routes, for programs."""
        guard.authorise(request)
        return JSONResponse(app.openapi(), headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def reference(request: Request) -> Response:
        """The routes, for people."""
        guard.authorise(request)
        return HTMLResponse(reference_page(app.openapi()), headers=HEADERS)

    @app.get("/requests/{request_id}")
    async def request_state(request: Request, request_id: str) -> Response:
        """`running`, `succeeded` (a repeated call gets the kept result) or `unknown`."""
        guard.authorise(request)
        state = engine.runs.state(request_id) or "unknown"
        return json_answer(RequestState(request_id=request_id, state=state))

    @app.post("/requests/{request_id}/cancel", status_code=202)
    async def cancel(request: Request, request_id: str) -> Response:
        """Stop a running request within one step; `state` reports whether one was running."""
        guard.authorise(request)
        state = "cancelling" if engine.runs.cancel(request_id) else "unknown"
        return json_answer(RequestState(request_id=request_id, state=state), 202)

    return app


async def _read_body(request: Request) -> bytes:
    """The body, refused beyond 1 MiB before it is read whole, and when it does not come."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _BODY_MAX_BYTES:
                    raise InvalidRequest(
                        f"the request's body is larger than {_BODY_MAX_BYTES} bytes",
                        details={"field": "request"},
                        status=413,
                    )
    except TimeoutError:
        raise InvalidRequest(
            f"the request's body did not come within {_BODY_SECONDS:g} s",
            details={"field": "request"},
            status=408,
        ) from None
    return bytes(body)


async def _result_or_gone(run: Run, request: Request, asked: GenerateRequest) -> GenerateResult:
    """The run's result; leaves the run when the client's connection closes, or when the caller's
    own time is over and another's is not."""
    result = asyncio.ensure_future(run.result())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait(
            {result, gone}, timeout=asked.timeout + _GRACE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not result.done():
            if not gone.done():
                raise too_late(asked.timeout)
            raise Cancelled("the client went away")
        return result.result()
    finally:
        gone.cancel()
        if not result.done():
            result.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(run: Run) -> AsyncIterator[bytes]:
    """Server-sent events: queued, progress, preview …, then one result or error."""
    queue = run.listen()
    result = asyncio.ensure_future(run.result())
    try:
        while not result.done() or not queue.empty():
            getter = asyncio.ensure_future(queue.get())
            done, _ = await asyncio.wait(
                {getter, result}, timeout=_PING_S, return_when=asyncio.FIRST_COMPLETED
            )
            if getter in done:
                event = getter.result()
                yield _sse(event.type, event)
                continue
            getter.cancel()
            if not done:
                # Keeps proxies from closing, and finds out that the client has gone.
                yield KEEPALIVE_COMMENT
        try:
            final: BaseModel = ResultEvent(result=result.result())
        except ContractError as error:
            final = ErrorEvent(status=error.status, error=error.body())
        yield _sse(str(final.type), final)  # type: ignore[attr-defined]
    finally:
        if not result.done():
            result.cancel()


def _sse(name: str, event: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=event.model_dump_json(exclude_none=True))
