"""A LoRA as the API shows it."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class LoraOut(BaseModel):
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
    created_at: datetime
