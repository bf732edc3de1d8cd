"""`/admin/takedowns`, `/admin/generations`: for the operator alone, with a token of its own."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime

from app.api.deps import ServicesDep
from app.core.errors import NotFound
from app.schemas.takedowns import GenerationRecordOut, TakedownIn, TakedownOut
from sdxl_contract.errors import Unauthorized


def only_the_operator(request: Request, services: ServicesDep) -> None:
    """Refuse whoever does not bring ADMIN_API_TOKEN; without one there is nothing here."""
    token = services.settings.admin_api_token
    if token is None:
        raise NotFound("There is nothing here: ADMIN_API_TOKEN is not set.")
    given = request.headers.get("authorization", "").partition(" ")[2].strip()
    if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise Unauthorized("This needs the operator's token (ADMIN_API_TOKEN).")


_OPERATOR = [Depends(only_the_operator)]
router = APIRouter(prefix="/admin", tags=["admin"], dependencies=_OPERATOR)


@router.post("/takedowns", status_code=201)
async def take_down(order: TakedownIn, services: ServicesDep) -> TakedownOut:
    """Remove it everywhere, at once."""
    record = await services.takedowns.take_down(order.kind, order.value, order.reason)
    return TakedownOut.model_validate(record)


@router.get("/takedowns")
async def list_takedowns(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> list[TakedownOut]:
    """The newest records first."""
    return [TakedownOut.model_validate(one) for one in await services.takedowns.latest(limit)]


@router.get("/generations")
async def list_generations(
    services: ServicesDep,
    since: Annotated[AwareDatetime | None, Query(description="with a zone")] = None,
    until: Annotated[AwareDatetime | None, Query(description="itself left out")] = None,
    sha256: Annotated[
        str | None,
        Query(pattern=r"^[0-9a-f]{64}$", description="of a picture, or of its signed file"),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[GenerationRecordOut]:
    """What was drawn, the newest first, where GENERATION_LOG_DAYS keeps records."""
    found = await services.takedowns.drawn(since, until, sha256, limit)
    return [GenerationRecordOut.model_validate(one) for one in found]
