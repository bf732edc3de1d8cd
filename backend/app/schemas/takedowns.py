"""Orders to take something down, and their records."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.models.takedown import Kind
from app.schemas.common import In


class TakedownIn(In):
    """What is to go, for every owner."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind = Field(
        description="content: an id, its pictures and all that are the same or nearly so; picture: "
        "a SHA-256; near: a likeness; lora: a LoRA file's SHA-256, refused from then on"
    )
    value: str = Field(min_length=1, max_length=64)
    reason: str = Field(min_length=1, max_length=2000, description="kept in the record")


class GenerationRecordOut(BaseModel):
    """What is kept of a content that was drawn, also when the content is gone."""

    model_config = ConfigDict(from_attributes=True)

    content_id: uuid.UUID
    owner: str
    prompt: str | None = Field(description="null unless GENERATION_LOG_PROMPTS is set")
    parameters: dict[str, Any]
    base_model: str
    loras: list[dict[str, Any]] = Field(description="sha256 and scale of each")
    images: list[dict[str, Any]] = Field(
        description="sha256, file_sha256, likeness and seed of each"
    )
    created_at: datetime


class TakedownOut(BaseModel):
    """The record: without the pictures."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    kind: Kind
    value: str
    reason: str
    contents: list[uuid.UUID] = Field(description="what was removed")
    created_at: datetime
