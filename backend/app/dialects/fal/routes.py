"""`/fal/queue` and `/fal/run`."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.api.deps import Caller, CallerDep, Rights, RightsDep, Services, ServicesDep
from app.core.errors import Conflict, NotFound
from app.dialects.asking import (
    check_model,
    echo_of,
    failure_of,
    fields_called,
    own_base,
    read_as,
    read_images,
    read_json,
    until_ended,
    with_loras,
)
from app.dialects.fal.errors import REQUEST_ID, as_fal
from app.dialects.fal.schemas import FIELDS, PATHS, InputIn
from app.dialects.fal.shown import output, status_of, urls_of
from app.dialects.fal.webhook import key_set
from app.dialects.from_pictures import with_pictures
from app.dialects.lora_refs import find_wishes, lora_fields
from app.dialects.subapp import json_body
from app.models import Content, DialectCall, Status
from app.models.webhook import Kind
from app.services.calls.calls import Called, NewCall
from app.services.contents.events import Event

_NATIVE_SIDE = 1024  # where no worker has been seen yet
_NAME = re.compile(r"[\w.-]{1,100}")
_SPOKEN = frozenset({"queued", "progress"})  # events that change what a status says
router = APIRouter()


async def _submit(
    request: Request,
    caller: Caller,
    services: Services,
    app: str,
    sub: str,
    webhook: str | None = None,
) -> Called:
    name = app.partition("/")[2]
    if not all(_NAME.fullmatch(part) for part in app.split("/")):
        raise NotFound("There is no app of this name.")
    if name != "lora":
        await check_model(services, app)
    if sub not in PATHS:
        raise NotFound(f"There is no path {sub[:60]!r} here: {', '.join(filter(None, PATHS))} are.")
    sent = await read_json(request)
    wish = read_as(InputIn, sent)
    if wish.model_name:
        await check_model(services, wish.model_name)
    wishes = wish.wishes()
    with fields_called(FIELDS | lora_fields(wishes)):
        limits = services.base_model.limits
        asked = wish.as_asked(name, _NATIVE_SIDE if limits is None else limits.native_size)
        wished = await find_wishes(request, services, caller, wishes)
        asked = with_loras(asked, wished)
        asked = await with_pictures(request, services, caller, asked, wish.picture(name, sub))
        call = NewCall(
            Kind.FAL,
            app,
            echo_of(sent, "input"),
            webhook_url=webhook,
            events=["completed"],
            webhook_field="fal_webhook",
        )
        return await services.calls.accept(caller.owner, asked, call, caller.allowance)


async def _queue(
    request: Request, caller: Caller, services: Services, app: str, sub: str, webhook: str | None
) -> Response:
    content, call = await _submit(request, caller, services, app, sub, webhook)
    base = own_base(request, services.settings)
    body = {
        "request_id": str(content.id),
        "status": "IN_QUEUE",
        "queue_position": 0,
        **urls_of(base, call.model, content),
    }
    return JSONResponse(body, headers={REQUEST_ID: str(content.id)})


async def _run(
    request: Request, caller: Caller, services: Services, app: str, sub: str
) -> Response:
    content, call = await _submit(request, caller, services, app, sub)
    content = await until_ended(Rights(request, services, caller), content)
    return await _result(services, content, call)


async def _result(services: Services, content: Content, call: DialectCall) -> Response:
    headers = {REQUEST_ID: str(content.id)}
    if not Status(content.status).is_final:
        answer = JSONResponse({"detail": "Request is still in progress"}, 400)
    elif (failure := failure_of(content)) is not None:
        answer = as_fal(failure)
    else:
        pictures = None
        if call.input.get("sync_mode") is True:
            pictures = await read_images(services, content)
        body = output(
            content,
            services.storage,
            services.settings.image_url_seconds,
            str(call.input.get("prompt", "")),
            pictures,
        )
        answer = JSONResponse(body)
    answer.headers.update(headers)
    return answer


async def _status(
    request: Request, services: Services, found: Called, *, with_logs: bool
) -> dict[str, Any]:
    content, call = found
    is_final = Status(content.status).is_final
    shown = status_of(
        content,
        call.model,
        own_base(request, services.settings),
        (await services.events.latest(content.id)).get("progress", {}),
        failure_of(content) if is_final else None,
        with_logs=with_logs,
    )
    if content.status == Status.QUEUED:
        shown["queue_position"] = await services.events.position(content.id)
    return shown


@router.post("/queue/{owner}/{alias}", openapi_extra=json_body(InputIn), response_model=None)
async def submit(
    owner: str,
    alias: str,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    fal_webhook: str | None = None,
) -> Response:
    """Put a request in the queue."""
    return await _queue(request, caller, services, f"{owner}/{alias}", "", fal_webhook)


@router.post(
    "/queue/{owner}/{alias}/{sub:path}", openapi_extra=json_body(InputIn), response_model=None
)
async def submit_below(
    owner: str,
    alias: str,
    sub: str,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    fal_webhook: str | None = None,
) -> Response:
    """Likewise, of an app's other path."""
    return await _queue(request, caller, services, f"{owner}/{alias}", sub, fal_webhook)


@router.post("/run/{owner}/{alias}", openapi_extra=json_body(InputIn), response_model=None)
async def run(
    owner: str, alias: str, request: Request, caller: CallerDep, services: ServicesDep
) -> Response:
    """Draw, and answer with what it gives."""
    return await _run(request, caller, services, f"{owner}/{alias}", "")


@router.post(
    "/run/{owner}/{alias}/{sub:path}", openapi_extra=json_body(InputIn), response_model=None
)
async def run_below(
    owner: str, alias: str, sub: str, request: Request, caller: CallerDep, services: ServicesDep
) -> Response:
    """Likewise, of an app's other path."""
    return await _run(request, caller, services, f"{owner}/{alias}", sub)


@router.get("/queue/{owner}/{alias}/requests/{request_id}/status", response_model=None)
async def read_status(
    owner: str,
    alias: str,
    request_id: str,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    logs: bool = Query(default=False),
) -> Response:
    """A request's state: 202 until it has ended, then 200."""
    found = await services.calls.get(caller.owner, Kind.FAL, request_id)
    body = await _status(request, services, found, with_logs=logs)
    code = 200 if body["status"] == "COMPLETED" else 202
    return JSONResponse(body, code, headers={REQUEST_ID: request_id})


@router.get("/queue/{owner}/{alias}/requests/{request_id}/status/stream", response_model=None)
async def stream_status(
    owner: str,
    alias: str,
    request_id: str,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    rights: RightsDep,
    logs: bool = Query(default=False),
) -> Response:
    """Server-sent events: the state whenever it changes, until the request has ended."""
    first = await services.calls.get(caller.owner, Kind.FAL, request_id)

    async def states() -> AsyncIterator[str]:
        events = services.events.follow(first[0].id)
        async for event in rights.while_they_hold(events, _is_final):
            if event.type not in _SPOKEN and not event.is_final:
                continue
            with contextlib.suppress(NotFound):
                found = await services.calls.get(caller.owner, Kind.FAL, request_id)
                body = await _status(request, services, found, with_logs=logs)
                yield f"data: {json.dumps(body)}\n\n"
                if body["status"] == "COMPLETED":
                    return

    return StreamingResponse(
        states(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", REQUEST_ID: request_id},
    )


def _is_final(event: Event) -> bool:
    return event.is_final


@router.get("/queue/{owner}/{alias}/requests/{request_id}", response_model=None)
async def read_result(
    owner: str, alias: str, request_id: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """What a request gave; its failure as an error."""
    content, call = await services.calls.get(caller.owner, Kind.FAL, request_id)
    return await _result(services, content, call)


_CANCEL_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {
        "description": "Not cancelled",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["status"],
                    "properties": {"status": {"type": "string"}},
                }
            }
        },
    }
    for status in (400, 404)
}


@router.put(
    "/queue/{owner}/{alias}/requests/{request_id}/cancel",
    response_model=None,
    responses=_CANCEL_REFUSED | {202: {"description": "Asked for while it is drawn"}},
)
async def cancel(
    owner: str, alias: str, request_id: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """Stop a request: 200 where it waited, 202 where it is being drawn, 400 where it has ended."""
    try:
        content, _ = await services.calls.get(caller.owner, Kind.FAL, request_id)
    except NotFound:
        return JSONResponse({"status": "NOT_FOUND"}, 404)
    try:
        content = await services.contents.cancel(caller.owner, content.id)
    except Conflict:
        return JSONResponse({"status": "ALREADY_COMPLETED"}, 400)
    if content.status == Status.CANCELLED:
        return JSONResponse({"status": "OK"})
    return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)


@router.get("/.well-known/jwks.json", include_in_schema=False)
async def read_keys(services: ServicesDep) -> dict[str, Any]:
    """What webhooks' messages are checked with; for everybody."""
    return key_set(await services.calls.signers(Kind.FAL))
