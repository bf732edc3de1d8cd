"""`/words`: styles and wildcards for prompts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from app.api.deps import OwnerDep, ServicesDep
from app.models import PromptStyle, Wildcard
from app.schemas.common import Page, Storable
from app.schemas.inputs.words import STYLE_NAME_MAX, StyleIn, StyleOut, WildcardIn, WildcardOut
from app.services.inputs.words import WILDCARD_NAME, WILDCARD_NAME_MAX

router = APIRouter(prefix="/words", tags=["words"])

# Said in the API's document; the service holds names against it, wherever they come from.
_StyleName = Annotated[Storable, Path(json_schema_extra={"maxLength": STYLE_NAME_MAX})]
_WildcardName = Annotated[
    Storable,
    Path(
        json_schema_extra={"maxLength": WILDCARD_NAME_MAX, "pattern": f"^{WILDCARD_NAME.pattern}$"}
    ),
]


@router.get("/styles")
async def list_styles(owner: OwnerDep, services: ServicesDep) -> Page[StyleOut]:
    """All styles, by name."""
    return Page(items=[_style(one) for one in await services.words.styles(owner)])


@router.put("/styles/{name}")
async def put_style(
    name: _StyleName, asked: StyleIn, owner: OwnerDep, services: ServicesDep
) -> StyleOut:
    """Keep a style, new or in place of what had its name."""
    return _style(await services.words.put_style(owner, name, asked))


@router.delete("/styles/{name}", status_code=204)
async def delete_style(name: _StyleName, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a style; contents that were drawn with it keep its words."""
    await services.words.delete_style(owner, name)


@router.get("/wildcards")
async def list_wildcards(owner: OwnerDep, services: ServicesDep) -> Page[WildcardOut]:
    """All wildcards, by name."""
    return Page(items=[_wildcard(one) for one in await services.words.wildcards(owner)])


@router.put("/wildcards/{name}")
async def put_wildcard(
    name: _WildcardName, asked: WildcardIn, owner: OwnerDep, services: ServicesDep
) -> WildcardOut:
    """Keep a wildcard, new or in place of what had its name; capital letters count as small."""
    return _wildcard(await services.words.put_wildcard(owner, name, asked))


@router.delete("/wildcards/{name}", status_code=204)
async def delete_wildcard(name: _WildcardName, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a wildcard; its marks in prompts then stay as they are written."""
    await services.words.delete_wildcard(owner, name)


def _style(style: PromptStyle) -> StyleOut:
    return StyleOut(name=style.name, prompt=style.prompt, negative_prompt=style.negative_prompt)


def _wildcard(wildcard: Wildcard) -> WildcardOut:
    return WildcardOut(name=wildcard.name, lines=wildcard.lines)
