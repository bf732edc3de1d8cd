"""A LoRA as the API shows it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from app.schemas.common import Description, In, Name, Out, Storable
from app.schemas.content import Scale

WORDS_MAX = 50
Word = Annotated[Storable, Field(min_length=1, max_length=100)]


def _words(words: list[str]) -> list[str]:
    """Without blanks around them and without doubles, in their order."""
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))


Words = Annotated[list[Word], Field(max_length=WORDS_MAX), AfterValidator(_words)]


class LoraPatch(In):
    """What is to change; a field left out stays. What the file is cannot be changed."""

    nulls_kept = frozenset({"cover_image_id"})

    name: Name = ""
    description: Description = ""
    tags: Words = Field(default_factory=list)
    trigger_words: Words = Field(default_factory=list)
    default_scale: Scale = 1.0
    cover_image_id: uuid.UUID | None = Field(
        default=None, description="a picture of one's own, by its id; null takes it away"
    )


class LoraOut(Out):
    """A LoRA of the library; what it is was read from its header."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    description: str
    tags: list[str]
    sha256: str
    size_bytes: int
    base_model: str
    algorithm: str
    format: str
    rank: int
    modules: int = Field(description="layers that it changes")
    text_encoder: bool = Field(description="whether it changes a text encoder")
    trigger_words: list[str]
    strays: list[str] = Field(description="keys in the file that name no layer")
    suggested_scheduler: str | None = Field(
        default=None,
        description="sampler that it wants, where it says that it was made for few steps (LCM, "
        "Lightning, Hyper-SD, DMD2, TCD); with `suggested_steps` and `suggested_cfg`",
    )
    suggested_steps: int | None = None
    suggested_cfg: float | None = None
    default_scale: float = Field(description="what a form begins with")
    cover_image_id: uuid.UUID | None
    cover_url: str | None = Field(
        default=None, description="a small picture of what it does; signed anew"
    )
    created_at: datetime
