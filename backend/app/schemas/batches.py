"""Many contents at once: a batch as the API takes and shows it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from app.models import Batch
from app.schemas.common import NUMBER, VISIBLE, Out, Side, Storable, storable
from app.schemas.content import (
    DEADLINE,
    SAMPLER,
    Cfg,
    Deadline,
    Images,
    LoraUse,
    Sampler,
    Seed,
    Steps,
)
from app.schemas.grid import Grid, GridParameter
from app.schemas.inputs.pictures import FromPictureIn
from app.schemas.inputs.words import FromWordsIn
from sdxl_contract import limits
from sdxl_contract.request import OutputFormat

BATCH_MAX = 500
# Blank ones are refused with the number of their place, so not by this type.
BatchPrompt = Annotated[str, Field(json_schema_extra=VISIBLE), AfterValidator(storable)]
Count = Annotated[int, Field(ge=1, le=100), NUMBER]


def _at_prompts(kind: str, **context: object) -> ValidationError:
    found = InitErrorDetails(type=kind, loc=("prompts",), input=[], ctx=dict(context))
    return ValidationError.from_exception_data("prompts", [found])


class BatchIn(FromPictureIn, FromWordsIn):
    """`POST /content/batch`: every prompt `count` times; a given seed counts upwards.

    With `grid` it is one prompt's pictures for each pair of two parameters' values, all else, the
    seed included, being the same in each. Where its prompts are an axis, `prompts` is left out.
    """

    model_config = ConfigDict(extra="forbid")

    prompts: list[BatchPrompt] = Field(
        default_factory=list,
        max_length=100,
        description="at least one, unless prompts are an axis of `grid`",
    )
    count: Count = Field(default=1, description=f"prompts x count is at most {BATCH_MAX}")
    avatar_id: uuid.UUID | None = None
    loras: list[LoraUse] = Field(default_factory=list, max_length=limits.MAX_LORAS)
    negative_prompt: Storable = ""
    width: Side | None = None
    height: Side | None = None
    steps: Steps | None = None
    cfg: Cfg | None = None
    seed: Seed | None = None
    num_images: Images = 1
    scheduler: Sampler | None = Field(default=None, description=SAMPLER)
    output_format: OutputFormat | None = None
    deadline_seconds: Deadline | None = Field(default=None, description=DEADLINE)

    grid: Grid | None = Field(default=None, description="of one prompt, with count 1")

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

    @model_validator(mode="after")
    def _has_its_prompts(self) -> BatchIn:
        if self.grid is not None and self.grid.prompts is not None:
            if self.prompts:
                raise _at_prompts("too_long", field_type="List", max_length=0, actual_length=1)
        elif not self.prompts and "prompts" not in self.model_fields_set:
            raise _at_prompts("missing")
        elif not self.prompts:
            raise _at_prompts("too_short", field_type="List", min_length=1, actual_length=0)
        return self

    @model_validator(mode="after")
    def _one_picture_a_cell(self) -> BatchIn:
        if self.grid is not None and (
            len(self.prompts) > 1 or (self.count, self.num_images) != (1, 1)
        ):
            raise PydanticCustomError(
                "grid", "a grid has one prompt, count 1 and num_images 1: one picture in each cell"
            )
        return self

    @property
    def size(self) -> int:
        """How many contents it becomes."""
        return self.grid.size if self.grid else len(self.prompts) * self.count


class BatchAccepted(BaseModel):
    """The contents of a new batch, prompt by prompt; of a grid, row by row."""

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
    prompts: list[str] = Field(description="the first ones, shortened")
    grid: Grid | None = Field(
        description="its axes: a content's `batch_place` says in which cell it is, row by row"
    )
    created_at: datetime


_SHOWN_PROMPTS = 3
_SHOWN_CHARS = 200


def _prompts_of(request: Mapping[str, Any]) -> list[str]:
    for axis in (request.get("grid") or {}).values():
        if axis["parameter"] == GridParameter.PROMPT:
            return list(axis["values"])
    return list(request.get("prompts", ()))


def batch_out(batch: Batch, counts: dict[str, int]) -> BatchOut:
    """`batch` as the API shows it, with its contents by status."""
    return BatchOut.model_validate(
        {
            "batch_id": batch.id,
            "total": batch.total,
            "prompts": [
                prompt[:_SHOWN_CHARS] for prompt in _prompts_of(batch.request)[:_SHOWN_PROMPTS]
            ],
            "grid": batch.request.get("grid"),
            "created_at": batch.created_at,
            **counts,
        }
    )
