"""A request that only enlarges a picture: nothing is drawn.

Must not know: which upscalers a worker has (see `limits.ModelLimits`), how one works.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from sdxl_contract import limits
from sdxl_contract.drawing.hires import LANCZOS
from sdxl_contract.fields import NullIsLeftOut, no_bool

SCALE_MAX = 8.0
# What draws, and has no part in enlarging.
STRANGERS = (
    "mask", "strength", "fit", "inpaint", "outpaint", "hires", "width", "height", "lora_url",
)  # fmt: skip


class Upscale(NullIsLeftOut):
    """`image` at `scale` times its sides."""

    upscaler: str = Field(
        default=LANCZOS,
        min_length=1,
        max_length=limits.NAME_MAX_CHARS,
        description="lanczos, or one of the worker's own by its name",
    )
    scale: Annotated[float, BeforeValidator(no_bool)] = Field(
        default=2.0, gt=1.0, le=SCALE_MAX, allow_inf_nan=False
    )

    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """Width and height in px of the result."""
        return round(source[0] * self.scale), round(source[1] * self.scale)
