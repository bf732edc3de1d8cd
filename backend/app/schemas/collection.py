"""Boards, choices of pictures and shared links as the API takes and shows them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import Field, StrictBool

from app.schemas.common import NUMBER, In, Name, Out

CHOICE_MAX = 500
SHARE_HOURS_MAX = 24 * 30
Ids = Annotated[list[uuid.UUID], Field(max_length=CHOICE_MAX)]


class StarIn(In):
    """`POST /content/star`."""

    image_ids: Ids
    starred: StrictBool


class Choice(In):
    """Contents with all their pictures, and single pictures."""

    content_ids: Ids = Field(default_factory=list)
    image_ids: Ids = Field(default_factory=list)


class BoardIn(In):
    """A new board, or its new name."""

    name: Name


class BoardImagesIn(In):
    """`POST /boards/{id}/images`: what comes onto a board and what leaves it."""

    add: Ids = Field(default_factory=list)
    remove: Ids = Field(default_factory=list)


class BoardOut(Out):
    """A board."""

    id: uuid.UUID
    name: str
    images: int = Field(description="on it, without those in the bin")
    created_at: datetime


class ShareIn(In):
    """`POST /shares`: who has the link sees the picture, without an API key, until it expires."""

    image_id: uuid.UUID
    hours: Annotated[int, Field(ge=1, le=SHARE_HOURS_MAX), NUMBER] = 24
    with_prompt: StrictBool = Field(
        default=False, description="whether the link shows the prompt too"
    )


class ShareOut(Out):
    """A new link; the server keeps only a digest of its token."""

    token: str
    path: str = Field(description="of the page that shows it, on this server")
    expires_at: datetime


class SharedOut(Out):
    """`GET /shared/{token}`: a picture, to whoever has the link."""

    url: str
    width: int
    height: int
    prompt: str | None
    expires_at: datetime
