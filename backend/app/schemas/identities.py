"""An avatar as the API takes and shows it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from app.schemas.common import NUMBER, VISIBLE, In, Name, Out, Prompt, storable
from app.schemas.content import Sampler
from sdxl_contract.limits import PROMPT_MAX_CHARS, SHORT_SCALE_MAX, SHORT_SCALE_MIN

AVATAR_SCALE_DEFAULT = 0.9
_SAMPLER = "sampler of its pictures where the request names none; null: the model's own"
AvatarScale = Annotated[
    float, Field(ge=SHORT_SCALE_MIN, le=SHORT_SCALE_MAX, allow_inf_nan=False), NUMBER
]
BasePrompt = Annotated[
    str,
    Field(min_length=1, max_length=PROMPT_MAX_CHARS, json_schema_extra=VISIBLE),
    AfterValidator(storable),
]


class AvatarIn(In):
    """A new avatar."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    base_prompt: BasePrompt
    negative_prompt: Prompt = ""
    lora_model_id: uuid.UUID | None = None
    lora_scale: AvatarScale = AVATAR_SCALE_DEFAULT
    scheduler: Sampler | None = Field(default=None, description=_SAMPLER)
    cover_image_id: uuid.UUID | None = Field(
        default=None, description="a picture of one's own, by its id"
    )


class AvatarPatch(In):
    """What is to change; a field left out stays. `lora_model_id: null` takes the LoRA away."""

    nulls_kept = frozenset({"lora_model_id", "scheduler", "cover_image_id"})

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    base_prompt: BasePrompt = ""
    negative_prompt: Prompt = ""
    lora_model_id: uuid.UUID | None = None
    lora_scale: AvatarScale = AVATAR_SCALE_DEFAULT
    scheduler: Sampler | None = Field(default=None, description=_SAMPLER)
    cover_image_id: uuid.UUID | None = Field(
        default=None, description="a picture of one's own, by its id"
    )


class AvatarOut(Out):
    """An avatar."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    base_prompt: str
    negative_prompt: str
    lora_model_id: uuid.UUID | None
    lora_scale: float
    scheduler: str | None = Field(description=_SAMPLER)
    cover_image_id: uuid.UUID | None
    cover_url: str | None = Field(
        default=None, description="a small picture of it; signed anew on each read"
    )
    created_at: datetime
    updated_at: datetime
