"""`/content`: asking for pictures and reading them back."""

from __future__ import annotations

import re
import uuid
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response, status

from app.api.deps import OwnerDep, ServicesDep
from app.models import Generation, Status
from app.schemas.common import Page
from app.schemas.content import ContentOut, GenerateIn, content_out
from sdxl_contract.errors import InvalidRequest

router = APIRouter(prefix="/content", tags=["content"])

_MAX_WAIT_SECONDS = 600.0
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?")


def wait_seconds(prefer: str | None, default: float) -> tuple[float, str | None]:
    """(seconds to wait, what to say was applied) for a `Prefer` header (RFC 7240)."""
    preferences = [part.strip().lower() for part in re.split(r"[,;]", prefer or "")]
    for preference in preferences:
        match = _WAIT.fullmatch(preference)
        if match:
            seconds = min(float(match[1]), _MAX_WAIT_SECONDS)
            return seconds, f"wait={seconds:.0f}"
    if "respond-async" in preferences:
        return 0.0, "respond-async"
    return default, None


@router.post("/generate", responses={202: {"model": ContentOut}})
async def generate(
    asked: GenerateIn,
    owner: OwnerDep,
    services: ServicesDep,
    response: Response,
    prefer: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> ContentOut:
    """Ask for a picture: 200 with the content when it ended within the wait, else 202."""
    if idempotency_key is not None and not (
        0 < len(idempotency_key) <= 255 and idempotency_key.isascii()
    ):
        raise InvalidRequest(
            "Idempotency-Key: must be 1 to 255 ASCII characters",
            details={"field": "Idempotency-Key"},
        )
    accepted = await services.generations.accept(owner, asked, idempotency_key)
    generation = accepted.generation
    seconds, applied = wait_seconds(prefer, services.settings.sync_wait_seconds)
    if seconds > 0:
        await services.generations.wait(generation.id, seconds)
        generation = await services.generations.get(owner, generation.id)
    if not Status(generation.status).is_final:
        response.status_code = status.HTTP_202_ACCEPTED
        response.headers["Retry-After"] = "1"
    response.headers["Location"] = f"/api/v1/content/{generation.id}"
    if applied is not None:
        response.headers["Preference-Applied"] = applied
    return _out(services, generation)


@router.get("")
async def list_contents(
    owner: OwnerDep,
    services: ServicesDep,
    avatar_id: uuid.UUID | None = None,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[ContentOut]:
    """Contents, newest first."""
    rows, next_cursor = await services.generations.page(
        owner, limit=limit, cursor=cursor, avatar_id=avatar_id, status=status
    )
    return Page(items=[_out(services, row) for row in rows], next_cursor=next_cursor)


@router.get("/{content_id}")
async def read_content(content_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> ContentOut:
    """One content; its URLs are signed anew."""
    return _out(services, await services.generations.get(owner, content_id))


@router.delete("/{content_id}", status_code=204)
async def delete_content(content_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a content and its pictures."""
    await services.generations.delete(owner, content_id)


def _out(services: ServicesDep, generation: Generation) -> ContentOut:
    return content_out(generation, services.storage, services.settings.image_url_seconds)
