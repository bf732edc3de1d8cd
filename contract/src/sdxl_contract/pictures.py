"""The part of a request that draws from a picture: its source, its mask, its frame.

Duty: fields, defaults, ranges, and what of them goes together.
Must not know: how a picture is fetched, decoded or drawn.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sdxl_contract import limits
from sdxl_contract.fields import NullIsLeftOut, known_sha256, no_bool

_NUMBER = BeforeValidator(no_bool)
Border = Annotated[int, Field(ge=0, le=limits.BORDER_MAX), _NUMBER]

STRENGTH_DEFAULT = 0.75
# What is drawn beside a picture has nothing below it to keep.
OUTPAINT_STRENGTH_DEFAULT = 0.9


class Fit(StrEnum):
    """How a source becomes as large as what is drawn: its middle cut out, or stretched."""

    CROP = "crop"
    STRETCH = "stretch"


class Area(StrEnum):
    """What is drawn for a mask: the whole picture, or only the mask's surroundings, enlarged."""

    WHOLE = "whole"
    MASKED = "masked"


class Fill(StrEnum):
    """What stands under the mask before it is drawn over: the source's own pixels, the colours
    around it, noise, or nothing (which is grey)."""

    ORIGINAL = "original"
    SURROUNDINGS = "surroundings"
    NOISE = "noise"
    NOTHING = "nothing"


class MaskChannel(StrEnum):
    """What of a mask's picture is the mask: how light it is, or how opaque."""

    LUMINANCE = "luminance"
    ALPHA = "alpha"


class PictureRef(NullIsLeftOut):
    """A picture of a request: where to fetch it. PNG, JPEG, WebP or AVIF; its first frame."""

    url: str = Field(min_length=1, max_length=limits.URL_MAX_CHARS, repr=False)
    sha256: str | None = Field(default=None, description="what the file must be")

    _sha256 = field_validator("sha256")(known_sha256)


class MaskRef(PictureRef):
    """A mask: white is drawn anew, black stays."""

    channel: MaskChannel = MaskChannel.LUMINANCE
    invert: bool = Field(default=False, description="black is drawn anew, white stays")


class Inpaint(NullIsLeftOut):
    """How the mask is used. Lengths in px: of the drawing, with `area` masked of the source."""

    area: Area = Area.WHOLE
    padding: Annotated[int, Field(ge=0, le=limits.PADDING_MAX), _NUMBER] = Field(
        default=32, description="around the mask; with area masked"
    )
    blur: Annotated[int, Field(ge=0, le=limits.BLUR_MAX), _NUMBER] = Field(
        default=4, description="of the mask's edge"
    )
    fill: Fill | None = Field(
        default=None, description="original if unset, for an outpainting the surroundings"
    )
    soft: bool = Field(
        default=False,
        description="a grey of the mask says how much may change: the darker, the later it is "
        "let go (differential diffusion)",
    )


class Outpaint(NullIsLeftOut):
    """Borders in px of the source to draw beside it, over an overlap that both share."""

    left: Border = 0
    right: Border = 0
    top: Border = 0
    bottom: Border = 0
    overlap: Annotated[int, Field(ge=0, le=limits.PADDING_MAX), _NUMBER] = 32

    @model_validator(mode="after")
    def _something_to_draw(self) -> Outpaint:
        if not (self.left or self.right or self.top or self.bottom):
            raise PydanticCustomError(
                "empty", "has no border: give left, right, top or bottom in px"
            )
        return self


class FromPicture(NullIsLeftOut):
    """A request's fields about pictures that it starts from."""

    image: PictureRef | None = Field(default=None, description="source that is drawn over")
    mask: MaskRef | None = Field(default=None, description="which part of image is drawn anew")
    strength: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description=f"share of the steps that is drawn; {STRENGTH_DEFAULT} if unset, "
        f"{OUTPAINT_STRENGTH_DEFAULT} for an outpainting",
    )
    fit: Fit | None = Field(default=None, description="crop if unset")
    inpaint: Inpaint | None = None
    outpaint: Outpaint | None = None

    _strength_number = field_validator("strength", mode="before")(no_bool)

    @model_validator(mode="after")
    def _belongs_together(self) -> FromPicture:
        if self.image is None:
            for field in ("mask", "strength", "fit", "inpaint", "outpaint"):
                if getattr(self, field) is not None:
                    raise PydanticCustomError(
                        "alone", "belongs to image, which is missing", {"field": field}
                    )
        if self.mask is not None and self.outpaint is not None:
            raise PydanticCustomError(
                "two_ways",
                "cannot be used with outpaint, which makes its own: send one of them",
                {"field": "mask"},
            )
        if self.inpaint is not None and self.mask is None and self.outpaint is None:
            raise PydanticCustomError(
                "alone", "belongs to mask or outpaint, which are missing", {"field": "inpaint"}
            )
        if self.outpaint is not None and self.area is Area.MASKED:
            raise PydanticCustomError(
                "area", "must be whole with outpaint", {"field": "inpaint.area"}
            )
        return self

    @property
    def area(self) -> Area:
        """What is drawn: whole without a mask."""
        return self.inpaint.area if self.inpaint is not None else Area.WHOLE

    def pictures(self) -> list[tuple[str, PictureRef]]:
        """(field, reference) of every picture that has to be fetched."""
        named = [("image", self.image), ("mask", self.mask)]
        return [(field, reference) for field, reference in named if reference is not None]

    def drawing_strength(self) -> float:
        """`strength`, or its default."""
        if self.strength is not None:
            return self.strength
        return STRENGTH_DEFAULT if self.outpaint is None else OUTPAINT_STRENGTH_DEFAULT


def drawn_steps(steps: int, strength: float) -> int:
    """How many of `steps` are drawn over a source: their share `strength`, rounded down."""
    return min(int(steps * strength), steps)
