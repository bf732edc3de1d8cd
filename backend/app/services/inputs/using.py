"""From the pictures that a request names to what its content keeps, and what its worker fetches.

Must not know: HTTP, jobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import NotFound
from app.repositories.inputs.images import FIELDS, InputRepository
from app.schemas.inputs.pictures import FromPictureIn

# Stands for a URL that is signed only at dispatch, so that the contract's own checks apply.
_NO_URL = "https://unsigned.invalid/picture.png"


class Found(NamedTuple):
    """A picture's object, and what its bytes are."""

    object_key: str
    sha256: str


async def find_pictures(
    session: AsyncSession, owner: str, asked: FromPictureIn
) -> dict[str, dict[str, Any]]:
    """What a content keeps of each picture that `asked` names, by field: id, hash, how it is used.

    Raises:
        NotFound: one is not there, or is another owner's.
    """
    kept: dict[str, dict[str, Any]] = {}
    for field in FIELDS:
        use = getattr(asked, field)
        if use is None:
            continue
        found = await find_picture(session, owner, use.image_id)
        if found is None:
            raise NotFound("There is no picture with this id.", field=f"{field}.image_id")
        await InputRepository(session, owner).use(use.image_id)
        kept[field] = {
            **use.model_dump(mode="json", exclude_none=True),
            "sha256": found.sha256,
        }
    return kept


async def find_picture(session: AsyncSession, owner: str, image_id: uuid.UUID) -> Found | None:
    """An owner's picture, uploaded or drawn."""
    repository = InputRepository(session, owner)
    uploaded = await repository.get(image_id)
    if uploaded is not None:
        return Found(uploaded.object_key, uploaded.sha256)
    drawn = await repository.drawn(image_id)
    if drawn is None:
        return None
    return Found(drawn.object_key, drawn.file_sha256 or drawn.sha256)


def with_urls(
    asked: Mapping[str, Any], url_of: Callable[[str], str] = lambda field: _NO_URL
) -> dict[str, Any]:
    """A content's parameters as the worker takes them: its pictures by URL."""
    pictures = {
        field: {
            **{name: value for name, value in asked[field].items() if name != "image_id"},
            "url": url_of(field),
        }
        for field in FIELDS
        if asked.get(field)
    }
    return {**asked, **pictures}
