"""Pictures that contents are drawn from, as the API takes and shows them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.schemas.common import NUMBER, In, Prompt, Storable
from sdxl_contract.drawing.controls import CONTROLS_MAX, Holding
from sdxl_contract.drawing.hires import LANCZOS, LATENT, Hires
from sdxl_contract.drawing.references import REFERENCES_MAX, Referring
from sdxl_contract.drawing.upscaling import Upscale
from sdxl_contract.limits import NAME_MAX_CHARS
from sdxl_contract.pictures import Fit, Inpaint, MaskChannel, Outpaint

Strength = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False), NUMBER]
Rescale = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False), NUMBER]


class PictureUse(In):
    """A picture to draw from: one that was uploaded (`POST /images`), or one that was drawn here
    (an image's id, as a content shows it)."""

    image_id: uuid.UUID


class MaskUse(PictureUse):
    """A picture as mask: white is drawn anew, black stays."""

    channel: MaskChannel | None = Field(default=None, description="luminance if unset")
    invert: bool | None = Field(default=None, description="black is drawn anew; false if unset")


class HiresIn(Hires):
    """A second, larger pass; what is left out is the first pass's, prompts included."""

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    upscaler: Annotated[Storable, Field(min_length=1, max_length=NAME_MAX_CHARS)] = Field(
        default=LATENT, description="latent, lanczos, or one that `GET /model` lists"
    )


class UpscaleIn(Upscale):
    """Enlarges `image` and draws nothing."""

    upscaler: Annotated[Storable, Field(min_length=1, max_length=NAME_MAX_CHARS)] = Field(
        default=LANCZOS, description="lanczos, or one that `GET /model` lists"
    )


class ControlIn(Holding):
    """A network that holds the drawing to a picture."""

    model: Annotated[Storable, Field(min_length=1, max_length=NAME_MAX_CHARS)] = Field(
        description="one that `GET /model` lists under limits.controls"
    )
    type: Annotated[Storable, Field(max_length=40)] | None = Field(
        default=None, description="of a network that knows several"
    )
    image: PictureUse


class ReferenceIn(Referring):
    """A picture whose look the drawing takes up."""

    adapter: Annotated[Storable, Field(min_length=1, max_length=NAME_MAX_CHARS)] = Field(
        description="one that `GET /model` lists under limits.adapters"
    )
    image: PictureUse


class FromPictureIn(In):
    """What a content's request says of the picture that it starts from, and of a second pass."""

    image: PictureUse | None = Field(default=None, description="source that is drawn over")
    mask: MaskUse | None = Field(default=None, description="which part of image is drawn anew")
    strength: Strength | None = Field(
        default=None, description="share of the steps; 0.75 if unset, 0.9 with outpaint"
    )
    fit: Fit | None = Field(default=None, description="crop if unset")
    inpaint: Inpaint | None = None
    outpaint: Outpaint | None = None
    hires: HiresIn | None = None
    upscale: UpscaleIn | None = Field(
        default=None, description="enlarges image and draws nothing; no prompt is needed"
    )
    controls: list[ControlIn] = Field(
        default_factory=list, max_length=CONTROLS_MAX, description="networks that hold the drawing"
    )
    references: list[ReferenceIn] = Field(
        default_factory=list,
        max_length=REFERENCES_MAX,
        description="pictures whose look the drawing takes up",
    )
    guidance_rescale: Rescale | None = Field(
        default=None, description="0 if unset; models with zero terminal SNR want about 0.7"
    )

    @property
    def names_pictures(self) -> bool:
        """Whether it is drawn from anything but words."""
        return bool(self.image or self.mask or self.controls or self.references)


class InputImageOut(BaseModel):
    """A picture that can be drawn from."""

    id: uuid.UUID
    sha256: str
    width: int
    height: int
    media_type: str
    size_bytes: int
    url: str = Field(description="of the file; expires")
    created_at: datetime
