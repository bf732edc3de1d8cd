"""A content as the API takes and shows it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.models import Batch, Content, Status
from app.schemas.common import NUMBER, VISIBLE, Name, Out, Side, Storable, storable
from app.services.storage import Storage
from sdxl_contract import limits

BATCH_MAX = 500
Steps = Annotated[int, Field(ge=limits.STEPS_MIN, le=limits.STEPS_MAX), NUMBER]
Cfg = Annotated[float, Field(ge=limits.CFG_MIN, le=limits.CFG_MAX, allow_inf_nan=False), NUMBER]
Images = Annotated[int, Field(ge=1, le=limits.MAX_IMAGES), NUMBER]
Seed = Annotated[int, Field(ge=0, le=limits.SEED_MAX), NUMBER]
Scale = Annotated[
    float, Field(ge=limits.SCALE_MIN, le=limits.SCALE_MAX, allow_inf_nan=False), NUMBER
]
# Blank ones are refused with the number of their place, so not by this type.
BatchPrompt = Annotated[str, Field(json_schema_extra=VISIBLE), AfterValidator(storable)]
Count = Annotated[int, Field(ge=1, le=100), NUMBER]


class LoraUse(BaseModel):
    """A LoRA of the library, by its id or by its name, and how strongly to apply it."""

    model_config = ConfigDict(extra="forbid")

    lora_model_id: uuid.UUID | None = None
    name: Name | None = Field(default=None, description="in place of lora_model_id")
    scale: Scale = 1.0

    @model_validator(mode="after")
    def _named_once(self) -> LoraUse:
        if (self.lora_model_id is None) == (self.name is None):
            raise PydanticCustomError("one_of", "send either lora_model_id or name")
        return self


class GenerateIn(BaseModel):
    """`POST /content/generate`. Ranges that depend on the base model are in `GET /model`."""

    model_config = ConfigDict(extra="forbid")

    prompt: Storable | None = None
    custom_prompt: Storable | None = Field(default=None, description="another name of prompt")
    avatar_id: uuid.UUID | None = None
    loras: list[LoraUse] = Field(default_factory=list, max_length=limits.MAX_LORAS)
    negative_prompt: Storable = ""
    width: Side | None = Field(
        default=None, description="px; the base model's native side if unset"
    )
    height: Side | None = Field(default=None, description="px; likewise")
    steps: Steps = limits.STEPS_DEFAULT
    cfg: Cfg = limits.CFG_DEFAULT
    seed: Seed | None = Field(default=None, description="chosen at random and kept if unset")
    num_images: Images = 1


class BatchIn(BaseModel):
    """`POST /content/batch`: every prompt `count` times; a given seed counts upwards."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[BatchPrompt] = Field(min_length=1, max_length=100)
    count: Count = Field(default=1, description=f"prompts x count is at most {BATCH_MAX}")
    avatar_id: uuid.UUID | None = None
    loras: list[LoraUse] = Field(default_factory=list, max_length=limits.MAX_LORAS)
    negative_prompt: Storable = ""
    width: Side | None = None
    height: Side | None = None
    steps: Steps = limits.STEPS_DEFAULT
    cfg: Cfg = limits.CFG_DEFAULT
    seed: Seed | None = None
    num_images: Images = 1

    @field_validator("count", mode="after")
    @classmethod
    def _bounded(cls, count: int, info: ValidationInfo) -> int:
        prompts = len(info.data.get("prompts", ()))
        if prompts * count > BATCH_MAX:
            raise ValueError(
                f"must be at most {BATCH_MAX // prompts} with {prompts} prompts: "
                f"a batch has at most {BATCH_MAX} contents"
            )
        return count


class BatchAccepted(BaseModel):
    """The contents of a new batch, prompt by prompt."""

    batch_id: uuid.UUID
    content_ids: list[uuid.UUID]


class BatchOut(Out):
    """How far a batch is."""

    batch_id: uuid.UUID
    total: int = Field(description="as accepted; deleted contents stay counted here")
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    created_at: datetime


def batch_out(batch: Batch, counts: dict[str, int]) -> BatchOut:
    """`batch` as the API shows it, with its contents by status."""
    return BatchOut.model_validate(
        {"batch_id": batch.id, "total": batch.total, "created_at": batch.created_at, **counts}
    )


class ImageOut(BaseModel):
    """One picture; its URLs expire."""

    url: str
    thumbnail_url: str | None = Field(
        description="WebP of at most 256 px a side; null where the picture is that small itself"
    )
    seed: int
    width: int
    height: int
    sha256: str = Field(
        description="of the picture before it was signed: the same for the same request"
    )
    file_sha256: str = Field(description="of the file at `url`, its signed manifest included")


class CostPart(BaseModel):
    """A share of a content's cost."""

    usd: float | None
    seconds: float


class CostOut(BaseModel):
    """`usd` is null on a device without a price, such as a CPU; `seconds` leave waiting out."""

    usd: float | None
    gpu: str | None
    seconds: float
    parts: dict[str, CostPart] | None = Field(
        description="cold_start, lora and generation; null for contents of older versions"
    )


class ErrorOut(Out):
    """Why a content failed."""

    code: str = Field(description="one of ErrorCode")
    message: str
    details: dict[str, Any] | None = Field(
        default=None, description="facts, such as the width and height that would fit"
    )


class ParametersOut(BaseModel):
    """Every value that was used."""

    model_config = ConfigDict(extra="allow")

    width: int
    height: int
    steps: int
    cfg: float
    seed: int = Field(description="of the first picture; the next one's is one higher")
    num_images: int


class UsedLora(Out):
    """A LoRA of a content: as asked for and, once drawn, with the worker's report."""

    model_config = ConfigDict(extra="allow")

    lora_model_id: uuid.UUID
    name: str
    sha256: str
    scale: float
    format: str | None = None
    algorithm: str | None = None
    rank: int | None = None
    modules_matched: int | None = None
    modules_unmatched: list[str] | None = None


class ContentOut(BaseModel):
    """A content: what was asked, and what became of it."""

    model_config = ConfigDict(protected_namespaces=())

    id: uuid.UUID
    status: Status
    prompt: str
    negative_prompt: str
    avatar_id: uuid.UUID | None
    batch_id: uuid.UUID | None
    image_url: str | None = Field(description="of the first picture; signed anew on each read")
    images: list[ImageOut]
    parameters: ParametersOut
    loras: list[UsedLora]
    timings: dict[str, float] | None = Field(description="seconds by phase")
    cost: CostOut | None
    error: ErrorOut | None
    model_clean: bool | None = Field(
        description="true: the model was found unchanged, bit for bit, after this content"
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def content_out(content: Content, storage: Storage, image_url_seconds: int) -> ContentOut:
    """`generation` with its pictures, as the API shows it; every URL signed now."""
    images = [
        ImageOut(
            url=storage.image_url(image.object_key, image_url_seconds),
            thumbnail_url=None
            if image.thumbnail_key is None
            else storage.image_url(image.thumbnail_key, image_url_seconds),
            seed=image.seed,
            width=image.width,
            height=image.height,
            sha256=image.sha256,
            file_sha256=image.file_sha256 or image.sha256,
        )
        for image in content.images
    ]
    cost = None
    if content.cost_seconds is not None:
        cost = CostOut(
            usd=content.cost_usd,
            gpu=content.cost_gpu,
            seconds=content.cost_seconds,
            parts=_cost_parts(content),
        )
    reports = {report["sha256"]: report for report in content.lora_reports or []}
    return ContentOut(
        id=content.id,
        status=Status(content.status),
        prompt=content.prompt,
        negative_prompt=content.negative_prompt,
        avatar_id=content.avatar_id,
        batch_id=content.batch_id,
        image_url=images[0].url if images else None,
        images=images,
        parameters=ParametersOut.model_validate(content.parameters),
        loras=[
            UsedLora.model_validate({**reports.get(lora["sha256"], {}), **lora})
            for lora in content.loras
        ],
        timings=content.timings,
        cost=cost,
        error=None if content.error is None else ErrorOut(**content.error),
        model_clean=content.model_clean,
        created_at=content.created_at,
        started_at=content.started_at,
        finished_at=content.finished_at,
    )


def _cost_parts(content: Content) -> dict[str, CostPart] | None:
    if content.cost_parts is None:
        return None
    per_second = None
    if content.cost_usd is not None and content.cost_seconds:
        per_second = content.cost_usd / content.cost_seconds
    return {
        name: CostPart(usd=None if per_second is None else per_second * seconds, seconds=seconds)
        for name, seconds in content.cost_parts.items()
    }
