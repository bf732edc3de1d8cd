"""Pictures whose look a drawing takes up: through which adapter, how strongly, when.

Must not know: which adapters a worker has (see `limits.ModelLimits`), how one works.
"""

from __future__ import annotations

from pydantic import Field

from sdxl_contract import limits
from sdxl_contract.drawing.controls import Guiding
from sdxl_contract.pictures import PictureRef

REFERENCES_MAX = 4


class Referring(Guiding):
    """One adapter, and how it shows its picture."""

    adapter: str = Field(min_length=1, max_length=limits.NAME_MAX_CHARS)


class Reference(Referring):
    """An adapter with its picture."""

    image: PictureRef
