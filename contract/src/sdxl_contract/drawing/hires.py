"""The second pass of a request: the finished drawing enlarged, and drawn over in part.

Duty: fields, defaults, ranges, and how many steps of which schedule are drawn, as A1111 counts.
Must not know: which upscalers a worker has (see `limits.ModelLimits`), how one works.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from sdxl_contract import limits
from sdxl_contract.drawing.samplers import Scheduler, scheduler_named
from sdxl_contract.fields import NullIsLeftOut, no_bool

LATENT, LANCZOS = "latent", "lanczos"
# Without a file: every worker has them.
BUILT_IN = (LATENT, LANCZOS)
SCALE_DEFAULT, SCALE_MAX = 2.0, 4.0
STRENGTH_DEFAULT = 0.7
# Noise levels that SDXL was trained with: no schedule is longer.
SCHEDULE_MAX = 1000
# Here a strength of 1 is this, as elsewhere, so that a whole schedule is no step longer than asked.
_STRENGTH_TOP = 0.999
# What a step costs at s times the sides, in steps of the first pass: s to this power. Fitted to
# counts of SDXL's UNet: 2.6 times at 1.5, 5.3 times at 2.
_COST_POWER = 2.4

_NUMBER = BeforeValidator(no_bool)


class Hires(NullIsLeftOut):
    """A second pass at `scale` times the sides; what is left out is the first pass's.

    Exactly `steps` steps are drawn, the last ones of a schedule of steps / strength.
    """

    scale: Annotated[float, _NUMBER] = Field(
        default=SCALE_DEFAULT, gt=1.0, le=SCALE_MAX, allow_inf_nan=False
    )
    upscaler: str = Field(
        default=LATENT,
        min_length=1,
        max_length=limits.NAME_MAX_CHARS,
        description="latent, lanczos, or one of the worker's own by its name",
    )
    steps: Annotated[int, _NUMBER] = Field(
        default=0, ge=0, le=limits.STEPS_MAX, description="0: as many as the first pass"
    )
    strength: Annotated[float, _NUMBER] = Field(
        default=STRENGTH_DEFAULT,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="how much is drawn anew; latent wants 0.5 and more",
    )
    prompt: str | None = None
    negative_prompt: str | None = None
    cfg: Annotated[float, _NUMBER] | None = Field(
        default=None, ge=limits.CFG_MIN, le=limits.CFG_MAX, allow_inf_nan=False
    )
    scheduler: Scheduler | None = None

    @field_validator("scheduler", mode="before")
    @classmethod
    def _known_spelling(cls, value: object) -> object:
        return (scheduler_named(value) or value) if isinstance(value, str) else value

    def drawn_steps(self, first: int) -> int:
        """How many steps the second pass draws after a first one of `first`."""
        return self.steps or first

    def schedule(self, first: int) -> int:
        """Of how many steps those are the last."""
        return int(self.drawn_steps(first) / min(self.strength, _STRENGTH_TOP))

    def size(self, first: tuple[int, int], multiple_of: int) -> tuple[int, int]:
        """Width and height in px of the second pass."""
        width, height = (
            # A scale may be a quotient of two sides, a hair too small.
            int(side * self.scale + 1e-6) // multiple_of * multiple_of
            for side in first
        )
        return width, height

    def cost(self, first: int) -> float:
        """What the second pass costs, in steps of the first."""
        return float(self.drawn_steps(first) * self.scale**_COST_POWER)
