"""An avatar as the API takes and shows it."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.common import Name, Real, Storable
from sdxl_contract.limits import PROMPT_MAX_CHARS, SHORT_SCALE_MAX, SHORT_SCALE_MIN

AVATAR_SCALE_DEFAULT = 0.9


class AvatarIn(BaseModel):
    """A new avatar."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    base_prompt: Storable = Field(min_length=1, max_length=PROMPT_MAX_CHARS)
    negative_prompt: Storable = Field(default="", max_length=PROMPT_MAX_CHARS)
    lora_model_id: uuid.UUID | None = None
    lora_scale: Real = Field(default=AVATAR_SCALE_DEFAULT, ge=SHORT_SCALE_MIN, le=SHORT_SCALE_MAX)


class AvatarPatch(BaseModel):
    """What is to change; a field left out stays. `lora_model_id: null` takes the LoRA away."""

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    base_prompt: Storable = Field(default="", min_length=1, max_length=PROMPT_MAX_CHARS)
    negative_prompt: Storable = Field(default="", max_length=PROMPT_MAX_CHARS)
    lora_model_id: uuid.UUID | None = None
    lora_scale: Real = Field(default=AVATAR_SCALE_DEFAULT, ge=SHORT_SCALE_MIN, le=SHORT_SCALE_MAX)


class AvatarOut(BaseModel):
    """An avatar."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    base_prompt: str
    negative_prompt: str
    lora_model_id: uuid.UUID | None
    lora_scale: float
    created_at: datetime
    updated_at: datetime
