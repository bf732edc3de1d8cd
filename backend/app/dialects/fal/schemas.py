"""What fal's clients send to its SDXL apps. Inputs that are not known are ignored, as fal does."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from app.dialects.asking import read_as
from app.dialects.from_pictures import PictureWish
from app.dialects.lora_refs import LoraWish
from app.dialects.lora_tags import read_tags
from app.schemas.common import NUMBER, Storable
from app.schemas.content import Cfg, GenerateIn, Scale, Seed, Steps
from sdxl_contract import limits
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.request import scheduler_named

Pixels = Annotated[int, Field(ge=1, le=16384), NUMBER]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER]
Count = Annotated[int, Field(ge=1, le=limits.MAX_IMAGES), NUMBER]
# Sides at a native side of 1024 px.
SIZES = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
_TRAILING = "(trailing timesteps)"
# What would change the picture and is not offered.
_NOT_OFFERED = (
    "controlnets", "controlnet_guess_mode", "ip_adapter", "embeddings",
    "expand_prompt", "clip_skip", "unet_name", "ic_light_model_url", "ic_light_image_url",
    "rescale_betas_snr_zero",
)  # fmt: skip


class App(NamedTuple):
    """What an app leaves open is this."""

    steps: int | None
    cfg: float | None
    output_format: str
    strength: float


_APPS = {"fast-sdxl": App(25, 7.5, "jpeg", 0.95), "lora": App(30, 7.5, "png", 0.5)}
_OTHER = App(None, None, "jpeg", 0.95)
# An app's paths, and what each needs.
PATHS: dict[str, tuple[str, ...]] = {
    "": (),
    "image-to-image": ("image_url",),
    "inpainting": ("image_url", "mask_url"),
    "inpaint": ("image_url", "mask_url"),
}


class SizeIn(BaseModel):
    """A picture's size in px."""

    model_config = ConfigDict(extra="ignore")

    width: Pixels
    height: Pixels


def _sized(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """An object is a size and nothing else: what is wrong in it is said of its own field."""
    return SizeIn.model_validate(value) if isinstance(value, dict) else read(value)


class LoraIn(BaseModel):
    """A LoRA: a URL, a Hugging Face id with perhaps a file of it, or a name of the library."""

    model_config = ConfigDict(extra="ignore")

    path: Storable
    scale: Scale = 1.0
    weight_name: Annotated[Storable, Field(pattern=r"^[\w.-]{1,100}$")] | None = None


class InputIn(BaseModel):
    """The body of a call."""

    model_config = ConfigDict(extra="ignore")

    prompt: Storable
    negative_prompt: Storable | None = None
    model_name: Storable | None = None
    image_size: Annotated[str | SizeIn | None, WrapValidator(_sized)] = None
    num_inference_steps: Steps | None = None
    guidance_scale: Cfg | None = None
    num_images: Count | None = None
    seed: Seed | None = None
    scheduler: Storable | None = None
    loras: list[LoraIn] | None = Field(default=None, max_length=limits.MAX_LORAS)
    format: Literal["jpeg", "png"] | None = None
    image_format: Literal["jpeg", "png"] | None = None
    output_format: Literal["jpeg", "png", "webp"] | None = None
    sync_mode: bool | None = None

    image_url: Storable | None = None
    mask_url: Storable | None = None
    strength: Unit | None = None
    noise_strength: Unit | None = None

    controlnets: Any = None
    controlnet_guess_mode: Any = None
    ip_adapter: Any = None
    embeddings: Any = None
    expand_prompt: Any = None
    clip_skip: Any = None
    unet_name: Any = None
    ic_light_model_url: Any = None
    ic_light_image_url: Any = None
    rescale_betas_snr_zero: Any = None

    def wishes(self) -> list[LoraWish]:
        """The LoRAs that are asked for, other than by a tag of the prompt."""
        return [
            LoraWish(one.path, one.scale, f"loras[{position}].path", one.weight_name)
            for position, one in enumerate(self.loras or ())
        ]

    def picture(self, app: str, sub: str) -> PictureWish:
        """The picture that is drawn over; of the mask white is drawn anew.

        Args:
            sub: the app's path that is called, of `PATHS`.

        Raises:
            InvalidRequest: the path needs one that is not there.
        """
        for field in PATHS[sub]:
            if not getattr(self, field):
                raise _wrong(field, "is required")
        strength = self.strength if self.noise_strength is None else self.noise_strength
        if strength is None:
            strength = _APPS.get(app, _OTHER).strength
        return PictureWish(self.image_url, self.mask_url, strength, "image_url", "mask_url")

    def as_asked(self, app: str, native_side: int) -> GenerateIn:
        """The same wish in the API's own words, its LoRAs left out but for the prompt's tags.

        Args:
            app: fal's name of it, without its owner.

        Raises:
            InvalidPrompt, InvalidRequest: a field is wrong, or cannot be had.
        """
        for field in _NOT_OFFERED:
            if getattr(self, field) not in (None, False, 0, "", [], {}):
                raise _wrong(field, "is not offered here: leave it out")
        usual = _APPS.get(app, _OTHER)
        tagged = read_tags(self.prompt)
        width, height = self._size(native_side)
        values: dict[str, Any] = {
            "prompt": tagged.prompt,
            "negative_prompt": self.negative_prompt,
            "width": width,
            "height": height,
            "num_images": self.num_images,
            "scheduler": self._sampler(),
            "steps": usual.steps if self.num_inference_steps is None else self.num_inference_steps,
            "cfg": usual.cfg if self.guidance_scale is None else self.guidance_scale,
            "seed": self.seed,
            "output_format": self.format
            or self.image_format
            or self.output_format
            or usual.output_format,
            "loras": [use.model_dump(exclude_none=True) for use in tagged.loras] or None,
        }
        return read_as(GenerateIn, {k: v for k, v in values.items() if v is not None})

    def _sampler(self) -> str | None:
        if not self.scheduler:
            return None
        name = self.scheduler.strip()
        if name.endswith(_TRAILING):
            name = f"{name.removesuffix(_TRAILING).strip()} trailing"
        found = scheduler_named(name)
        if found is None:
            raise _wrong("scheduler", "is no sampler's name: GET /api/v1/model lists them")
        return found.value

    def _size(self, native_side: int) -> tuple[int | None, int | None]:
        if self.image_size is None:
            return None, None
        if isinstance(self.image_size, SizeIn):
            return self.image_size.width, self.image_size.height
        if self.image_size not in SIZES:
            raise _wrong("image_size", f"must be {{width, height}} or one of {', '.join(SIZES)}")
        width, height = SIZES[self.image_size]
        return round(width * native_side / 8192) * 8, round(height * native_side / 8192) * 8


# Our names of fields → the callers'.
FIELDS = {
    "width": "image_size",
    "height": "image_size",
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "image.image_id": "image_url",
    "mask.image_id": "mask_url",
}


def _wrong(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {what}", details={"field": field})
