"""Pictures whose look a drawing takes up: through which adapter, how strongly, when.

Must not know: which adapters a worker has (see `limits.ModelLimits`), how one works.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from sdxl_contract import limits
from sdxl_contract.drawing.controls import Share
from sdxl_contract.fields import NullIsLeftOut, no_bool
from sdxl_contract.pictures import PictureRef

REFERENCES_MAX = 4
_NUMBER = BeforeValidator(no_bool)


class Referring(NullIsLeftOut):
    """One adapter, and how it shows its picture: of n steps, in those from `start`·n to `end`·n."""

    adapter: str = Field(min_length=1, max_length=limits.NAME_MAX_CHARS)
    scale: Annotated[float, _NUMBER] = Field(default=1.0, ge=0.0, le=2.0, allow_inf_nan=False)
    start: Share = 0.0
    end: Share = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Referring:
        if self.start >= self.end:
            raise PydanticCustomError("order", "has start at end or behind it")
        return self


class Reference(Referring):
    """An adapter with its picture."""

    image: PictureRef
