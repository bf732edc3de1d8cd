"""A content as the API takes and shows it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.models import Status
from app.schemas.common import NUMBER, In, Name, Out, Side, Storable
from app.schemas.inputs.pictures import FromPictureIn
from app.schemas.inputs.words import FromWordsIn
from sdxl_contract import limits
from sdxl_contract.request import OutputFormat, Scheduler, scheduler_named

DEADLINE_MAX_S = 7 * 86400
Steps = Annotated[int, Field(ge=limits.STEPS_MIN, le=limits.STEPS_MAX), NUMBER]
Cfg = Annotated[float, Field(ge=limits.CFG_MIN, le=limits.CFG_MAX, allow_inf_nan=False), NUMBER]
Images = Annotated[int, Field(ge=1, le=limits.MAX_IMAGES), NUMBER]
Seed = Annotated[int, Field(ge=0, le=limits.SEED_MAX), NUMBER]
Scale = Annotated[
    float, Field(ge=limits.SCALE_MIN, le=limits.SCALE_MAX, allow_inf_nan=False), NUMBER
]
Deadline = Annotated[float, Field(ge=1, le=DEADLINE_MAX_S, allow_inf_nan=False), NUMBER]


def _sampler(value: object) -> object:
    """Our name of a sampler that other tools may spell otherwise.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(value, str):
        return value
    found = scheduler_named(value)
    if found is None:
        raise ValueError("is no sampler's name: GET /api/v1/model lists them")
    return found


Sampler = Annotated[Scheduler, BeforeValidator(_sampler, json_schema_input_type=str)]
_OPEN = "left to the worker that draws if unset"
SAMPLER = "sampler; the model's own if unset. `GET /model` lists what the worker offers"
DEADLINE = "seconds until it fails where it has not ended, waiting included"


class LoraUse(In):
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


class GenerateIn(FromPictureIn, FromWordsIn):
    """`POST /content/generate`. Ranges that depend on the base model are in `GET /model`."""

    model_config = ConfigDict(extra="forbid")

    prompt: Storable | None = None
    custom_prompt: Storable | None = Field(default=None, description="another name of prompt")
    avatar_id: uuid.UUID | None = None
    loras: list[LoraUse] = Field(default_factory=list, max_length=limits.MAX_LORAS)
    negative_prompt: Storable = ""
    width: Side | None = Field(
        default=None, description="px; the base model's native side if unset, once it is drawn"
    )
    height: Side | None = Field(default=None, description="px; likewise")
    steps: Steps | None = Field(default=None, description=_OPEN)
    cfg: Cfg | None = Field(default=None, description=_OPEN)
    seed: Seed | None = Field(default=None, description="chosen at random and kept if unset")
    num_images: Images = 1
    scheduler: Sampler | None = Field(default=None, description=SAMPLER)
    output_format: OutputFormat | None = Field(default=None, description="png if unset")
    deadline_seconds: Deadline | None = Field(default=None, description=DEADLINE)


class ImageOut(BaseModel):
    """One picture; its URLs expire."""

    id: uuid.UUID
    position: int = Field(description="its place among the request's pictures, from 0")
    starred: bool
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
        default=None,
        exclude_if=lambda value: not value,
        description="facts, such as the width and height that would fit",
    )


class ParametersOut(BaseModel):
    """What was asked for, null where it is left to the worker; once drawn, all that was used."""

    model_config = ConfigDict(extra="allow", json_schema_serialization_defaults_required=True)

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    seed: int = Field(description="of the first picture; the next one's is one higher")
    num_images: int
    scheduler: str | None = Field(
        default=None, description="as asked for; where that was left open, once drawn, the model's"
    )
    output_format: str | None = None


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


class WaitingFor(Out):
    """What keeps an accepted content from going on; it does by itself when that is over."""

    reason: str = Field(
        description="worker_unreachable, worker_loading, worker_failed, worker_busy, "
        "lora_unreachable, image_unreachable, storage or queue_paused"
    )
    message: str


class QueueOut(Out):
    """A queue of one owner: its contents that wait and that are being drawn."""

    paused_at: datetime | None = Field(
        description="since when nothing more is begun; null where it is not paused"
    )
    queued: int
    running: int


class SafetyOfImage(Out):
    """`score` from 0 to 1; flagged from the threshold on."""

    model_config = ConfigDict(extra="ignore")

    score: float
    flagged: bool


class SafetyOut(Out):
    """What the worker's safety checker found in each picture."""

    model_config = ConfigDict(protected_namespaces=(), extra="ignore")

    model: str
    threshold: float
    images: list[SafetyOfImage]


class WrittenOut(Out):
    """Words before styles and wildcards were put into them; without an avatar's part."""

    prompt: str
    negative_prompt: str
    styles: list[str] = Field(description="by name, as they were taken one after the other")


class ContentOut(BaseModel):
    """A content: what was asked, and what became of it."""

    model_config = ConfigDict(protected_namespaces=())

    id: uuid.UUID
    status: Status
    prompt: str
    negative_prompt: str
    written: WrittenOut | None = Field(
        description="what was written, where styles or wildcards made the prompts of it; else null"
    )
    avatar_id: uuid.UUID | None
    batch_id: uuid.UUID | None
    batch_place: int | None = Field(description="in its batch, from 0; of a grid, row by row")
    image_url: str | None = Field(description="of the first picture; signed anew on each read")
    images: list[ImageOut]
    parameters: ParametersOut
    waiting_for: WaitingFor | None = Field(
        description="what it waits for; null where that is only its turn"
    )
    loras: list[UsedLora]
    timings: dict[str, float] | None = Field(description="seconds by phase")
    cost: CostOut | None
    error: ErrorOut | None
    model_clean: bool | None = Field(
        description="true: the model was found unchanged, bit for bit, after this content"
    )
    safety: SafetyOut | None = Field(description="null where the worker has no safety checker")
    created_at: datetime
    deadline_at: datetime | None = Field(description="it fails where it has not ended by then")
    started_at: datetime | None
    finished_at: datetime | None
    deleted_at: datetime | None = Field(description="in the bin since then; null: it is not")
