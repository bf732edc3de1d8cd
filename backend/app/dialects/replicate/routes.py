"""`/replicate/v1`: predictions, models, the account."""

from __future__ import annotations

import contextlib
import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from app.api.deps import Caller, CallerDep, Rights, Services, ServicesDep
from app.core.cursor import CURSOR
from app.core.errors import Conflict, NotFound
from app.dialects.asking import (
    check_model,
    echo_of,
    fields_called,
    own_base,
    read_as,
    read_json,
    until_ended,
    with_loras,
)
from app.dialects.from_pictures import with_pictures
from app.dialects.lora_refs import find_wishes, lora_fields
from app.dialects.replicate.schemas import FIELDS, InputIn, PredictionIn, wait_seconds
from app.dialects.replicate.shown import API, model_out, prediction, version_out
from app.dialects.subapp import json_body
from app.models import Status
from app.models.webhook import Kind
from app.services.calls.calls import Called, NewCall
from sdxl_contract.errors import ContractError, InvalidRequest

_PAGE = 100
_CANCEL_SECONDS = 2.0
_NATIVE_SIDE = 1024  # where no worker has been seen yet
# What a version is one of, where that is all that a call says.
_USUAL_MODEL = "stability-ai/sdxl"
_MODEL = re.compile(r"[\w.-]{1,100}/[\w.-]{1,100}")
router = APIRouter()


async def _create(
    request: Request, caller: Caller, services: Services, model: str | None
) -> dict[str, Any]:
    # Clients give up half a second after the time that they ask to wait.
    until = time.monotonic() + wait_seconds(request.headers.get("prefer", ""))
    sent = read_as(PredictionIn, await read_json(request))
    model, version = _named(model, sent.version)
    if not _MODEL.fullmatch(model):
        raise NotFound("There is no model of this name: it is owner/name.", field="model")
    await check_model(services, model)
    try:
        wish = read_as(InputIn, sent.input)
    except ContractError as error:
        raise _within_input(error) from None
    wishes = wish.wishes()
    with fields_called(FIELDS | lora_fields(wishes)):
        limits = services.base_model.limits
        asked = wish.as_asked(_NATIVE_SIDE if limits is None else limits.native_size)
        wished = await find_wishes(request, services, caller, wishes)
        asked = with_loras(asked, wished)
        asked = await with_pictures(request, services, caller, asked, wish.picture())
        call = NewCall(
            Kind.REPLICATE,
            model,
            echo_of(sent.input, "input"),
            version,
            sent.webhook or sent.webhook_completed,
            sent.events,
        )
        content, kept = await services.calls.accept(caller.owner, asked, call, caller.allowance)
    seconds = until - time.monotonic()
    if seconds > 0:
        content = await until_ended(Rights(request, services, caller), content, seconds)
    return _shown(request, services, (content, kept), while_waiting=True)


def _named(model: str | None, version: str | None) -> tuple[str, str | None]:
    """(owner/name, version) of what a call's path and body name."""
    if model is not None:
        return model, version
    if version is None:
        raise InvalidRequest("version: is required", details={"field": "version"})
    name, _, found = version.partition(":")
    if "/" in name:
        return name, found or None
    return _USUAL_MODEL, version


def _within_input(error: ContractError) -> ContractError:
    """`error` of a field of `input`, named as such."""
    field = str((error.details or {}).get("field", ""))
    if field and error.message.startswith(field):
        error.message = f"input.{error.message}"
        error.details = {**(error.details or {}), "field": f"input.{field}"}
    return error


def _shown(
    request: Request,
    services: Services,
    found: Called,
    progress: dict[str, Any] | None = None,
    *,
    while_waiting: bool = False,
) -> dict[str, Any]:
    return prediction(
        found,
        services.storage,
        services.settings.image_url_seconds,
        own_base(request, services.settings),
        progress,
        while_waiting=while_waiting,
    )


@router.post("/predictions", status_code=201, openapi_extra=json_body(PredictionIn))
async def create(request: Request, caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """Draw with what `version` names; `Prefer: wait` waits for the end."""
    return await _create(request, caller, services, None)


@router.post(
    "/models/{owner}/{name}/predictions", status_code=201, openapi_extra=json_body(PredictionIn)
)
async def create_of_model(
    owner: str, name: str, request: Request, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """Draw with a model."""
    return await _create(request, caller, services, f"{owner}/{name}")


@router.post(
    "/deployments/{owner}/{name}/predictions",
    status_code=201,
    openapi_extra=json_body(PredictionIn),
)
async def create_of_deployment(
    owner: str, name: str, request: Request, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """Likewise."""
    return await _create(request, caller, services, f"{owner}/{name}")


@router.get("/predictions")
async def list_predictions(
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    cursor: Annotated[str | None, Query(pattern=CURSOR)] = None,
) -> dict[str, Any]:
    """Newest first."""
    page, more = await services.calls.page(caller.owner, Kind.REPLICATE, limit=_PAGE, cursor=cursor)
    place = f"{own_base(request, services.settings)}{API}/predictions"
    return {
        "results": [_shown(request, services, found) for found in page],
        "next": None if more is None else f"{place}?cursor={more}",
        "previous": None,
    }


@router.get("/predictions/{prediction_id}")
async def read(
    prediction_id: str, request: Request, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """One, and how far it is."""
    found = await services.calls.get(caller.owner, Kind.REPLICATE, prediction_id)
    progress = None
    if found[0].status == Status.RUNNING:
        progress = (await services.events.latest(found[0].id)).get("progress")
    return _shown(request, services, found, progress)


@router.post("/predictions/{prediction_id}/cancel")
async def cancel(
    prediction_id: str, request: Request, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """Stop one; one that has ended stays as it is."""
    content, call = await services.calls.get(caller.owner, Kind.REPLICATE, prediction_id)
    with contextlib.suppress(Conflict):
        await services.contents.cancel(caller.owner, content.id)
    content = await until_ended(Rights(request, services, caller), content, _CANCEL_SECONDS)
    return _shown(request, services, (content, call))


@router.get("/models/{owner}/{name}")
async def read_model(
    owner: str, name: str, request: Request, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """A model: any whose name holds `sdxl` is this server's base model."""
    await check_model(services, f"{owner}/{name}")
    return model_out(owner, name, own_base(request, services.settings))


@router.get("/models/{owner}/{name}/versions/{version}")
async def read_version(
    owner: str, name: str, version: str, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """A version: whichever is asked for, there is one."""
    await check_model(services, f"{owner}/{name}")
    if len(version) > 200:
        raise NotFound("There is no version with this id.")
    return version_out(version)


@router.get("/account")
async def read_account(caller: CallerDep) -> dict[str, Any]:
    """Whose key it is."""
    return {
        "type": "user",
        "username": caller.owner,
        "name": caller.name or caller.owner,
        "github_url": None,
        "avatar_url": None,
    }


@router.get("/webhooks/default/secret")
async def read_secret(caller: CallerDep, services: ServicesDep) -> dict[str, str]:
    """What messages to the URLs that predictions name are signed with."""
    return {"key": (await services.calls.signer(caller.owner, Kind.REPLICATE)).secret}
