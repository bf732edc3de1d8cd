"""`/words`: styles and wildcards for prompts."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.deps import OwnerDep, ServicesDep
from app.models import PromptStyle, Wildcard
from app.schemas.common import Page, Storable
from app.schemas.inputs.words import (
    StyleIn,
    StyleOut,
    WildcardIn,
    WildcardOut,
)

router = APIRouter(prefix="/words", tags=["words"])


@router.get("/styles")
async def list_styles(owner: OwnerDep, services: ServicesDep) -> Page[StyleOut]:
    """All styles, by name."""
    return Page(items=[_style(one) for one in await services.words.styles(owner)])


@router.put("/styles/{name}")
async def put_style(
    name: Storable, asked: StyleIn, owner: OwnerDep, services: ServicesDep
) -> StyleOut:
    """Keep a style, new or in place of what had its name."""
    return _style(await services.words.put_style(owner, name, asked))


@router.delete("/styles/{name}", status_code=204)
async def delete_style(name: Storable, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a style; contents that were drawn with it keep its words."""
    await services.words.delete_style(owner, name)


@router.get("/wildcards")
async def list_wildcards(owner: OwnerDep, services: ServicesDep) -> Page[WildcardOut]:
    """All wildcards, by name."""
    return Page(items=[_wildcard(one) for one in await services.words.wildcards(owner)])


@router.put("/wildcards/{name}")
async def put_wildcard(
    name: Storable, asked: WildcardIn, owner: OwnerDep, services: ServicesDep
) -> WildcardOut:
    """Keep a wildcard, new or in place of what had its name; capital letters count as small."""
    return _wildcard(await services.words.put_wildcard(owner, name, asked))


@router.delete("/wildcards/{name}", status_code=204)
async def delete_wildcard(name: Storable, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a wildcard; its marks in prompts then stay as they are written."""
    await services.words.delete_wildcard(owner, name)


def _style(style: PromptStyle) -> StyleOut:
    return StyleOut(name=style.name, prompt=style.prompt, negative_prompt=style.negative_prompt)


def _wildcard(wildcard: Wildcard) -> WildcardOut:
    return WildcardOut(name=wildcard.name, lines=wildcard.lines)
