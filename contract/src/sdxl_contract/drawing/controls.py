"""Networks that hold a drawing to a picture: which, with what picture, how strongly, when.

Must not know: which networks a worker has (see `limits.ModelLimits`), how one works.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from sdxl_contract import limits
from sdxl_contract.fields import NullIsLeftOut, no_bool
from sdxl_contract.pictures import PictureRef

CONTROLS_MAX = 4
_NUMBER = BeforeValidator(no_bool)
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False), _NUMBER]
Threshold = Annotated[int, Field(ge=0, le=2000), _NUMBER]


class Canny(NullIsLeftOut):
    """Draw the picture's edges first: above `high` begins one, down to `low` it goes on."""

    low: Threshold = 100
    high: Threshold = 200

    @model_validator(mode="after")
    def _in_order(self) -> Canny:
        if self.low > self.high:
            raise PydanticCustomError("order", "has low above high")
        return self


class Guiding(NullIsLeftOut):
    """How strongly a network guides, and when: of n steps, in those from `start`·n to `end`·n."""

    scale: Annotated[float, _NUMBER] = Field(default=1.0, ge=0.0, le=2.0, allow_inf_nan=False)
    start: Share = 0.0
    end: Share = 1.0

    @model_validator(mode="after")
    def _spans_steps(self) -> Self:
        if self.start >= self.end:
            raise PydanticCustomError("order", "has start at end or behind it")
        return self


class Holding(Guiding):
    """One network, and how it holds."""

    model: str = Field(min_length=1, max_length=limits.NAME_MAX_CHARS)
    type: str | None = Field(
        default=None, max_length=40, description="of a network that knows several"
    )
    canny: Canny | None = None


class Control(Holding):
    """A network with its picture: a map that is ready, or edges to be found (`canny`)."""

    image: PictureRef
