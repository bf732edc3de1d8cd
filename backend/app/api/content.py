"""`/content`: asking for pictures and reading them back."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response, status
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AwareDatetime, BeforeValidator

from app.api.content_out import content_out
from app.api.deps import CallerDep, OwnerDep, RightsDep, ServicesDep
from app.core.cursor import CURSOR
from app.core.db import DATABASE_LOST
from app.core.errors import Conflict, NotFound
from app.models import Content, Status
from app.models.filters import ContentFilter
from app.schemas.batches import BatchAccepted, BatchIn, BatchOut, batch_out
from app.schemas.common import Page
from app.schemas.content import (
    ContentOut,
    GenerateIn,
    QueueOut,
)
from sdxl_contract.errors import InvalidRequest

router = APIRouter(prefix="/content", tags=["content"])
queue_router = APIRouter(prefix="/queue", tags=["content"])

_MAX_WAIT_SECONDS = 600.0
_WAIT = re.compile(r"wait\s*=\s*\"?([0-9]{1,30})\"?")


def wait_seconds(prefer: Sequence[str], default: float) -> tuple[float, str | None]:
    """(seconds to wait, what to say was applied) for `Prefer` headers (RFC 7240)."""
    preferences = [part.strip().lower() for line in prefer for part in re.split(r"[,;]", line)]
    for preference in preferences:
        match = _WAIT.fullmatch(preference)
        if match:
            seconds = min(float(match[1]), _MAX_WAIT_SECONDS)
            return seconds, f"wait={seconds:.0f}"
    if "respond-async" in preferences:
        return 0.0, "respond-async"
    return default, None


async def _idempotency_key(
    idempotency_key: Annotated[
        str | None,
        Header(json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[\\x20-\\x7e]+$"}),
    ] = None,
) -> str | None:
    """The header, checked."""
    if idempotency_key is not None and not (
        0 < len(idempotency_key) <= 255
        and idempotency_key.isascii()
        and idempotency_key.isprintable()
    ):
        raise InvalidRequest(
            "Idempotency-Key: must be 1 to 255 printable ASCII characters",
            details={"field": "Idempotency-Key"},
        )
    return idempotency_key


Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[
    str | None,
    Query(
        max_length=200,
        description="next_cursor of the page before",
        json_schema_extra={"pattern": CURSOR},
    ),
]


def _date_and_time(value: object) -> object:
    # A bare number is no date, although it might be read as seconds since 1970.
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d[Tt ]", value):
        raise ValueError("must be a date and time such as 2026-03-01T00:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_date_and_time)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


@router.post("/generate", responses={202: {"model": ContentOut}})
async def generate(
    asked: GenerateIn,
    caller: CallerDep,
    services: ServicesDep,
    rights: RightsDep,
    response: Response,
    idempotency_key: IdempotencyKey,
    prefer: Annotated[list[str] | None, Header()] = None,
) -> ContentOut:
    """Ask for a picture: 200 with the content when it ended within the wait, else 202."""
    owner = caller.owner
    accepted = await services.contents.accept(owner, asked, idempotency_key, caller.allowance)
    content = accepted.content
    seconds, applied = wait_seconds(prefer or (), services.settings.sync_wait_seconds)
    if seconds > 0:
        # It is accepted: without the database it is still so, and a 503 would have it asked again.
        with contextlib.suppress(*DATABASE_LOST):
            await rights.until(services.contents.wait(content.id, seconds, is_new=accepted.is_new))
            content = await services.contents.get(owner, content.id)
    if not Status(content.status).is_final:
        response.status_code = status.HTTP_202_ACCEPTED
        response.headers["Retry-After"] = "1"
    response.headers["Location"] = f"/api/v1/content/{content.id}"
    if applied is not None:
        response.headers["Preference-Applied"] = applied
    return _out(services, content)


@router.post("/batch", status_code=202)
async def generate_batch(
    asked: BatchIn,
    caller: CallerDep,
    services: ServicesDep,
    response: Response,
    idempotency_key: IdempotencyKey,
) -> BatchAccepted:
    """Ask for many pictures; all are accepted, or none."""
    batch, ids = await services.contents.accept_batch(
        caller.owner, asked, idempotency_key, caller.allowance
    )
    response.headers["Location"] = f"/api/v1/content/batch/{batch.id}"
    return BatchAccepted(batch_id=batch.id, content_ids=ids)


@router.get("/batch")
async def list_batches(
    owner: OwnerDep,
    services: ServicesDep,
    limit: Limit = 50,
    cursor: Cursor = None,
    grid: bool | None = None,
) -> Page[BatchOut]:
    """Batches and how far they are, newest first; with `grid` only the grids, or the others."""
    rows, next_cursor = await services.batches.page(owner, limit=limit, cursor=cursor, is_grid=grid)
    return Page(items=[batch_out(*row) for row in rows], next_cursor=next_cursor)


@router.post("/batch/{batch_id:uuid}/repeat", status_code=202)
async def repeat_batch(
    batch_id: uuid.UUID, caller: CallerDep, services: ServicesDep, response: Response
) -> BatchAccepted:
    """The same request as a new batch: what it left to chance, such as a seed, is chosen anew."""
    old, _ = await services.batches.get(caller.owner, batch_id)
    batch, ids = await services.contents.accept_batch(
        caller.owner, BatchIn.model_validate(old.request), None, caller.allowance
    )
    response.headers["Location"] = f"/api/v1/content/batch/{batch.id}"
    return BatchAccepted(batch_id=batch.id, content_ids=ids)


@router.post("/batch/{batch_id:uuid}/cancel", status_code=202)
async def cancel_batch(batch_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> BatchOut:
    """Stop every content of a batch that has not ended, the last ones first."""
    for content_id in reversed(await services.batches.content_ids(owner, batch_id)):
        # One that has ended meanwhile, or was removed, needs no stop.
        with contextlib.suppress(Conflict, NotFound):
            await services.contents.cancel(owner, content_id)
    return batch_out(*await services.batches.get(owner, batch_id))


@router.get("/batch/{batch_id:uuid}")
async def read_batch(batch_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> BatchOut:
    """How many contents of a batch are in which state."""
    return batch_out(*await services.batches.get(owner, batch_id))


async def _content_filter(
    avatar_id: uuid.UUID | None = None,
    status: Status | None = None,
    batch_id: uuid.UUID | None = None,
    q: Annotated[
        str | None,
        Query(max_length=200, description="words of the prompt; the beginning of each is enough"),
    ] = None,
    lora_model_id: uuid.UUID | None = None,
    created_from: Annotated[Moment | None, Query(description="with a zone")] = None,
    created_until: Annotated[Moment | None, Query(description="itself left out")] = None,
    starred: Annotated[bool, Query(description="only with a picture that has a star")] = False,
    board_id: uuid.UUID | None = None,
    deleted: Annotated[bool, Query(description="what is in the bin, instead of the rest")] = False,
) -> ContentFilter:
    """The list's filter; several parts narrow it down together."""
    return ContentFilter(
        avatar_id=avatar_id,
        status=status,
        batch_id=batch_id,
        words=q,
        lora_model_id=lora_model_id,
        since=created_from,
        until=created_until,
        starred=starred,
        board_id=board_id,
        binned=deleted,
    )


@router.get("")
async def list_contents(
    owner: OwnerDep,
    services: ServicesDep,
    wanted: Annotated[ContentFilter, Depends(_content_filter)],
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[ContentOut]:
    """Contents, newest first."""
    rows, next_cursor = await services.contents.page(
        owner, limit=limit, cursor=cursor, wanted=wanted
    )
    return Page(
        items=[_out(services, row, binned=wanted.binned) for row in rows],
        next_cursor=next_cursor,
    )


@router.get("/{content_id:uuid}")
async def read_content(content_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> ContentOut:
    """One content; its URLs are signed anew."""
    return _out(services, await services.contents.get(owner, content_id))


@router.delete("/{content_id:uuid}", status_code=204)
async def delete_content(content_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a content and its pictures."""
    await services.contents.delete(owner, content_id)


@router.post("/{content_id:uuid}/cancel", status_code=202)
async def cancel_content(
    content_id: uuid.UUID, owner: OwnerDep, services: ServicesDep
) -> ContentOut:
    """Stop a content: at once where it waits, within a step where it is being drawn."""
    return _out(services, await services.contents.cancel(owner, content_id))


@router.post("/{content_id:uuid}/replay", status_code=202)
async def replay_content(
    content_id: uuid.UUID, caller: CallerDep, services: ServicesDep, response: Response
) -> ContentOut:
    """The same request, its seed included, again."""
    content = await services.contents.replay(caller.owner, content_id, caller.allowance)
    response.headers["Location"] = f"/api/v1/content/{content.id}"
    return _out(services, content)


async def _own_content(content_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> Content:
    """The content, looked up before the stream begins, so that a wrong id is still a 404."""
    return await services.contents.get(owner, content_id)


@router.get("/{content_id:uuid}/events", response_class=EventSourceResponse)
async def follow_content(
    content: Annotated[Content, Depends(_own_content)],
    owner: OwnerDep,
    services: ServicesDep,
    rights: RightsDep,
    last_event_id: Annotated[str, Header()] = "",
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a content as it happens; resumes after `Last-Event-ID`.

    Ends within seconds where the key is revoked or the session ends.
    """
    number = last_event_id.strip()
    after = int(number) if number.isascii() and number.isdigit() and len(number) < 19 else 0
    events = rights.while_they_hold(
        services.events.follow(content.id, after), lambda event: event.is_final
    )
    async with contextlib.aclosing(events):
        async for event in events:
            data: dict[str, Any] = event.data
            if event.is_final:
                try:
                    shown = _out(services, await services.contents.get(owner, content.id))
                except NotFound:
                    return
                data = {"content": shown.model_dump(mode="json")}
                if shown.error is not None:
                    data["error"] = shown.error.model_dump()
            yield ServerSentEvent(
                data=data,
                event=event.type,
                id=None if event.number is None else str(event.number),
            )


@queue_router.get("")
async def read_queue(owner: OwnerDep, services: ServicesDep) -> QueueOut:
    """How many contents wait and are being drawn, and whether the queue is paused."""
    return QueueOut(**(await services.queue.line(owner))._asdict())


@queue_router.post("/pause")
async def pause_queue(owner: OwnerDep, services: ServicesDep) -> QueueOut:
    """Begin nothing more, until it is resumed; what is being drawn goes on to its end.

    Contents are still accepted, and wait. Their deadlines go on. Pausing twice is pausing once.
    """
    return QueueOut(**(await services.queue.line(owner, paused=True))._asdict())


@queue_router.post("/resume")
async def resume_queue(owner: OwnerDep, services: ServicesDep) -> QueueOut:
    """Go on with what waits, within seconds."""
    return QueueOut(**(await services.queue.line(owner, paused=False))._asdict())


def _out(services: ServicesDep, content: Content, *, binned: bool = False) -> ContentOut:
    return content_out(
        content,
        services.storage,
        services.settings.image_url_seconds,
        services.gate.waiting_for,
        binned=binned,
    )
