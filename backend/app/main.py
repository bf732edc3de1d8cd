"""The application: its parts put together, started and stopped.

Duty: build every service once from the settings, and hand them to the routes.
Must not know: what the services do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.routing import BaseRoute

from app import __version__
from app.api import (
    collection,
    content,
    costs,
    files,
    health,
    identities,
    loras,
    studio,
    takedowns,
    verify,
    webhooks,
)
from app.api.access import keys, session
from app.api.deps import KEY_OR_COOKIE, Services
from app.api.describing import reference
from app.api.describing.document import PROBLEM, install_document
from app.api.edge.body_deadline import BodyDeadline
from app.api.edge.body_limit import BodyLimit
from app.api.edge.calls import KeyBeforeUpload, RequestLog
from app.api.edge.compression import JsonGzip
from app.api.edge.headers import PlainHeaders
from app.api.edge.utf8_json import Utf8Json
from app.api.inputs import embeddings, images, words
from app.core.db import DATABASE_LOST, Database
from app.core.dialect import Dialect, Dialects
from app.core.errors import StorageFailed, install_error_handlers
from app.core.settings import Settings
from app.dialects.mcp.serving import McpEndpoint
from app.dialects.mounting import dialects_of, message_shapes, mount_dialects
from app.models import Status
from app.services.avatars import AvatarService
from app.services.calls.calls import CallService
from app.services.calls.lora_urls import LoraUrls
from app.services.calls.picture_urls import PictureUrls
from app.services.calls.sent_files import SentFiles
from app.services.collection import CollectionService
from app.services.contents.accepting import ContentService
from app.services.contents.attempt import Drawing
from app.services.contents.batches import BatchService
from app.services.contents.events import EventService
from app.services.contents.listener import Listener, Waiters
from app.services.contents.queue import JobQueue
from app.services.inputs.embeddings import EmbeddingService
from app.services.inputs.images import InputImageService
from app.services.inputs.words import WordsService
from app.services.lora_inference import build_lora_inference
from app.services.loras import LoraService
from app.services.marking.forbidden_words import ForbiddenWords
from app.services.marking.marking import Marking, watermark_of
from app.services.marking.replaying import ReplayService
from app.services.marking.takedowns import TakedownService
from app.services.marking.verifying import FILE_MAX_BYTES
from app.services.outgoing import Outgoing
from app.services.storage import Storage, build_storage
from app.services.upkeep.chores import chores
from app.services.upkeep.metrics import Metrics
from app.services.webhooks.sender import WebhookSender
from app.services.webhooks.service import WebhookService
from app.services.worker.base_model import BaseModel
from app.services.worker.gate import Gate
from app.services.worker.inference import Inference, TracedInference
from app.startup import Prepared
from sdxl_contract.limits import EMBEDDING_MAX_BYTES, IMAGE_MAX_BYTES

API = "/api/v1"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    statuses: {
        "description": meaning,
        "content": PROBLEM,
    }
    for statuses, meaning in (
        ("4XX", "The call cannot be answered as it is; the detail says why."),
        ("5XX", "The server or its storage is at fault; the call may be repeated."),
    )
}
_UPLOAD = f"{API}/loras/models/upload"
_IMAGES = f"{API}/images"
_EMBEDDINGS = f"{API}/embeddings"
_VERIFY = f"{API}/verify"
_REPLAYS = (f"{API}/replays", f"{API}/replays/comparison")
_FORM_BYTES = 64 * 2**10  # around a file, so that the file's own bound is what is told

log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    prepared: Prepared,
    *,
    inference: Inference | None = None,
    storage: Storage | None = None,
) -> FastAPI:
    """The backend on a prepared database. `inference` and `storage` are for tests' doubles."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            app.state.services, close = await _start(
                settings, prepared, waiters, metrics, inference, storage
            )
        except (*DATABASE_LOST, StorageFailed, OSError) as error:
            app.state.start_failure = error
            raise
        app.state.mcp = McpEndpoint(app.state.services)
        try:
            yield
        finally:
            waiters.stop()
            await app.state.mcp.stop()
            await close()

    waiters = Waiters()
    registry = CollectorRegistry()
    metrics = Metrics(registry, settings.daily_alert_usd)
    app = FastAPI(
        title="SDXL with LoRAs",
        version=__version__,
        description="Avatars, LoRAs and pictures. Errors are application/problem+json.",
        lifespan=lifespan,
        docs_url=None,  # the framework's pages run another server's scripts
        redoc_url=None,
    )
    app.state.waiters = waiters
    app.state.metrics = metrics
    install_error_handlers(app)
    install_document(app)
    own = Dialect(
        "",
        takes_cookie=True,
        any_key_while_open=False,
        large_bodies={
            _UPLOAD: settings.max_upload_bytes,
            _IMAGES: IMAGE_MAX_BYTES,
            _EMBEDDINGS: EMBEDDING_MAX_BYTES + _FORM_BYTES,
            **dict.fromkeys((_VERIFY, *_REPLAYS), FILE_MAX_BYTES),
        },
        key_first=frozenset({_UPLOAD, _IMAGES, _EMBEDDINGS, *_REPLAYS}),
    )
    dialects = app.state.dialects = Dialects(own, dialects_of(settings))
    app.add_middleware(KeyBeforeUpload, at_once=settings.max_uploads_at_once)
    app.add_middleware(Utf8Json, dialects=dialects)
    app.add_middleware(RequestLog)
    app.add_middleware(JsonGzip)
    app.add_middleware(BodyDeadline, silence_s=settings.body_silence_seconds, dialects=dialects)
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes, dialects=dialects)
    app.add_middleware(PlainHeaders, dialects=dialects)
    if settings.allowed_origins:
        # No cookies across origins: another site's page brings an API key of its own, and with
        # it may send what headers its client library likes.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Location", "Preference-Applied", "Retry-After", "x-request-id"],
        )
    app.router.routes.extend(_routes())
    mount_dialects(app)
    Instrumentator(registry=registry, excluded_handlers=["/metrics"]).instrument(app).expose(
        app, include_in_schema=False
    )
    return app


@functools.cache
def _routes() -> tuple[BaseRoute, ...]:
    """The server's own routes: their signatures are read once, however many apps there are."""
    api = APIRouter(prefix=API, responses=_PROBLEMS)
    api.include_router(session.router)
    api.include_router(keys.router, dependencies=KEY_OR_COOKIE)
    for router in (
        *(
            part.router
            for part in (content, images, words, embeddings, loras, identities, costs, webhooks)
        ),
        content.queue_router,
        collection.content_router,
        collection.router,
        health.model_router,
        verify.replay_router,
    ):
        api.include_router(router, dependencies=KEY_OR_COOKIE)
    api.include_router(takedowns.router)  # for the operator, by another token than an API key
    api.include_router(verify.router)  # whoever has a picture may ask what it is
    api.include_router(collection.share_router)
    whole = APIRouter()
    for router in (api, health.router, reference.router, files.router, studio.router):
        whole.include_router(router)
    return tuple(whole.routes)


async def _start(
    settings: Settings,
    prepared: Prepared,
    waiters: Waiters,
    metrics: Metrics,
    inference: Inference | None,
    storage: Storage | None,
) -> tuple[Services, Callable[[], Awaitable[None]]]:
    """Build and start everything; returns what stops it again."""
    async with contextlib.AsyncExitStack() as stack:
        database = Database(prepared.url)
        stack.push_async_callback(database.close)
        if storage is None:
            storage = await asyncio.to_thread(build_storage, settings)
        if inference is None:
            inference = build_lora_inference(settings)
        inference = TracedInference(inference)
        stack.push_async_callback(inference.aclose)
        base_model = BaseModel(
            inference,
            database,
            settings.modal_endpoint_url or "none",
            settings.lora_provider.value,
        )
        gate = Gate(base_model)
        contents = ContentService(
            database,
            storage,
            base_model,
            inference,
            waiters,
            settings.content_deadline_seconds,
            forbidden=await asyncio.to_thread(
                ForbiddenWords.from_file, settings.prompt_blocklist_file
            ),
            watermark=watermark_of(settings),
        )
        on_end = metrics.on_end(waiters.announce)
        marking = await asyncio.to_thread(Marking.from_settings, settings, __version__)
        drawing = Drawing(
            settings,
            database,
            storage,
            inference,
            marking,
            gate,
            on_end=on_end,
            gpu=base_model.gpu_of,
        )
        queue = JobQueue(
            database,
            settings,
            drawing.run,
            prepared.revive,
            chores(settings, database, storage, metrics),
            on_expired=lambda content_id: on_end(content_id, Status.FAILED),
            why_waiting=lambda: (gate.waiting_for or {}).get("message"),
        )
        contents.queue = queue
        listener = Listener(database.conninfo, waiters.announce, drawing.stop)
        listener.start()
        stack.push_async_callback(listener.stop)
        await base_model.look()
        await queue.start()
        stack.push_async_callback(queue.stop)
        watch = asyncio.create_task(
            base_model.watch(settings.model_look_seconds), name="base model watch"
        )
        stack.push_async_callback(_end, watch)
        figures = asyncio.create_task(
            metrics.watch(database, settings.metrics_refresh_seconds), name="metrics watch"
        )
        stack.push_async_callback(_end, figures)
        outgoing = Outgoing(
            allow_loopback=settings.webhook_allow_loopback,
            proxy_url=settings.webhook_proxy_url.get_secret_value()
            if settings.webhook_proxy_url
            else None,
        )
        stack.push_async_callback(outgoing.aclose)
        shapes = message_shapes(settings, database, storage)
        sender = WebhookSender(
            database, storage, outgoing, settings.image_url_seconds, shapes=shapes
        )
        sender.start()
        stack.push_async_callback(sender.stop)
        loras = LoraService(database, storage, base_model, settings.max_upload_bytes)
        lora_urls = LoraUrls(
            database,
            loras,
            outgoing,
            max_bytes=settings.max_upload_bytes,
            at_once=settings.max_uploads_at_once,
        )
        services = Services(
            settings=settings,
            database=database,
            storage=storage,
            base_model=base_model,
            contents=contents,
            loras=loras,
            inputs=InputImageService(database, storage),
            words=WordsService(database),
            embeddings=EmbeddingService(database, storage, base_model),
            avatars=AvatarService(database),
            batches=BatchService(database),
            events=EventService(database, waiters, lambda: gate.waiting_for),
            webhooks=WebhookService(database, outgoing, sender.wake),
            calls=CallService(database, contents, outgoing),
            lora_urls=lora_urls,
            picture_urls=PictureUrls(outgoing, at_once=settings.max_uploads_at_once),
            sent_files=SentFiles(database, at_once=settings.max_uploads_at_once),
            collection=CollectionService(database),
            queue=queue,
            marking=marking,
            replays=ReplayService(database, storage, contents, base_model),
            takedowns=TakedownService(database, storage, waiters),
            gate=gate,
        )
        return services, stack.pop_all().aclose


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
