"""Orders to take something down, and their records."""

from __future__ import annotations

import uuid
from datetime import datetime

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


class TakedownOut(BaseModel):
    """The record: without the pictures."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    kind: Kind
    value: str
    reason: str
    contents: list[uuid.UUID] = Field(description="what was removed")
    created_at: datetime
