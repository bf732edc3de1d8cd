"""From the pictures that a request names to what its content keeps, and what its worker fetches.

Must not know: HTTP, jobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import NotFound
from app.repositories.inputs.images import FIELDS, LISTS, InputRepository
from app.schemas.inputs.pictures import FromPictureIn

# Stands for a URL that is signed only at dispatch, so that the contract's own checks apply.
_NO_URL = "https://unsigned.invalid/picture.png"


class Found(NamedTuple):
    """A picture's object, and what its bytes are."""

    object_key: str
    sha256: str
    media_type: str


def map_pictures(
    values: Mapping[str, Any], change: Callable[[str, dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Parameters with what they say of each picture changed, by its field and what is said."""
    changed: dict[str, Any] = {
        name: change(name, values[name]) for name in FIELDS if values.get(name)
    }
    for name in LISTS:
        if values.get(name):
            changed[name] = [
                {**one, "image": change(f"{name}[{number}].image", one["image"])}
                for number, one in enumerate(values[name])
            ]
    return {**values, **changed}


def pictures_in(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What parameters say of each picture, by its field."""
    found: dict[str, dict[str, Any]] = {}
    map_pictures(values, found.setdefault)
    return found


async def find_pictures(session: AsyncSession, owner: str, asked: FromPictureIn) -> dict[str, Any]:
    """What a content keeps of what `asked` says of pictures: with each one's id its hash.

    Raises:
        NotFound: one is not there, or is another owner's.
    """
    said = asked.model_dump(mode="json", include={*FIELDS, *LISTS}, exclude_none=True)
    said = {name: value for name, value in said.items() if value}
    hashes: dict[str, str] = {}
    ids = {field: uuid.UUID(use["image_id"]) for field, use in pictures_in(said).items()}
    for field, image_id in ids.items():
        found = await find_picture(session, owner, image_id)
        if found is None:
            raise NotFound("There is no picture with this id.", field=f"{field}.image_id")
        hashes[field] = found.sha256
    # In one order, so that two requests for the same pictures never wait for each other.
    for image_id in sorted(set(ids.values())):
        await InputRepository(session, owner).use(image_id)
    return map_pictures(said, lambda field, use: {**use, "sha256": hashes[field]})


async def find_picture(session: AsyncSession, owner: str, image_id: uuid.UUID) -> Found | None:
    """An owner's picture, uploaded or drawn."""
    repository = InputRepository(session, owner)
    uploaded = await repository.get(image_id)
    if uploaded is not None:
        return Found(uploaded.object_key, uploaded.sha256, uploaded.media_type)
    drawn = await repository.drawn(image_id)
    if drawn is None:
        return None
    return Found(drawn.object_key, drawn.file_sha256 or drawn.sha256, drawn.media_type)


def with_urls(
    asked: Mapping[str, Any], url_of: Callable[[str], str] = lambda field: _NO_URL
) -> dict[str, Any]:
    """A content's parameters as the worker takes them: its pictures and embeddings by URL."""

    def fetched(field: str, use: dict[str, Any]) -> dict[str, Any]:
        return {
            **{name: value for name, value in use.items() if name != "image_id"},
            "url": url_of(field),
        }

    kept = asked.get("embeddings") or ()
    embeddings = [
        {"url": url_of(embedding_field(n)), "token": one["token"], "sha256": one["sha256"]}
        for n, one in enumerate(kept)
    ]
    return map_pictures({**asked, "embeddings": embeddings} if embeddings else asked, fetched)


def embedding_field(number: int) -> str:
    """Where a request names its embedding of this number."""
    return f"embeddings[{number}]"
