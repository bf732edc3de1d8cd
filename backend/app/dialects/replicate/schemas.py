"""What Replicate's clients send. Inputs that are not known are ignored, as Replicate does."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.dialects.asking import read_as
from app.dialects.from_pictures import PictureWish
from app.dialects.lora_refs import LoraWish
from app.dialects.lora_tags import read_tags
from app.schemas.common import NUMBER, Storable
from app.schemas.content import Cfg, GenerateIn, Scale, Seed, Steps
from sdxl_contract import limits
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.request import scheduler_named

STEPS_DEFAULT, CFG_DEFAULT, STRENGTH_DEFAULT = 50, 7.5, 0.8
_SCALE_DEFAULT = 0.6  # of `replicate_weights`; other models' LoRAs have 1
_SAMPLERS = {
    "DDIM": "ddim",
    "DPMSolverMultistep": "dpmpp_2m",
    "HeunDiscrete": "heun",
    "KarrasDPM": "dpmpp_2m_karras",
    "K_EULER": "euler",
    "K_EULER_ANCESTRAL": "euler_a",
}
# Sides at a native side of 1024 px.
_RATIOS = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "9:16": (768, 1344),
    "21:9": (1536, 640),
    "9:21": (640, 1536),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:3": (1152, 896),
    "3:4": (896, 1152),
    "5:4": (1088, 896),
    "4:5": (896, 1088),
}
_FORMATS = {"jpg": "jpeg"}
Event = Literal["start", "output", "logs", "completed"]
Pixels = Annotated[int, Field(ge=1, le=16384), NUMBER]
Count = Annotated[int, Field(ge=1, le=limits.MAX_IMAGES), NUMBER]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER]


class LoraIn(BaseModel):
    """A LoRA of our own list: `path` as in the other fields, or a `name` of the library."""

    model_config = ConfigDict(extra="ignore")

    path: Storable | None = None
    name: Storable | None = None
    scale: Scale = 1.0


class InputIn(BaseModel):
    """A prediction's `input`: of Replicate's SDXL, of its community's models, and ours."""

    model_config = ConfigDict(extra="ignore")

    prompt: Storable = "An astronaut riding a rainbow unicorn"
    negative_prompt: Storable | None = None
    width: Pixels | None = None
    height: Pixels | None = None
    aspect_ratio: str | None = None
    size: Storable | None = None
    num_outputs: Count | None = None
    scheduler: Storable | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Cfg | None = None
    seed: Seed | None = None
    output_format: Literal["png", "jpg", "jpeg", "webp"] | None = None

    replicate_weights: Storable | None = None
    lora_weights: Storable | None = None
    lora_url: Storable | None = None
    lora: Storable | None = None
    hf_lora: Storable | None = None
    lora_scale: Scale | None = None
    extra_lora: Storable | None = None
    extra_lora_scale: Scale | None = None
    loras: list[LoraIn] | None = Field(default=None, max_length=limits.MAX_LORAS)

    refine: Literal["no_refiner", "expert_ensemble_refiner", "base_image_refiner"] | None = None
    image: Storable | None = None
    mask: Storable | None = None
    prompt_strength: Unit | None = None

    def wishes(self) -> list[LoraWish]:
        """The LoRAs that are asked for, other than by a tag of the prompt."""
        found = []
        for field in ("replicate_weights", "lora_weights", "lora_url", "lora", "hf_lora"):
            text = getattr(self, field)
            if text:
                usual = _SCALE_DEFAULT if field == "replicate_weights" else 1.0
                scale = usual if self.lora_scale is None else self.lora_scale
                found.append(LoraWish(text, scale, f"input.{field}"))
        if self.extra_lora:
            scale = 1.0 if self.extra_lora_scale is None else self.extra_lora_scale
            found.append(LoraWish(self.extra_lora, scale, "input.extra_lora"))
        for position, one in enumerate(self.loras or ()):
            field = f"input.loras[{position}].path"
            if not (one.path or one.name):
                raise InvalidRequest(f"{field}: must name a LoRA", details={"field": field})
            found.append(LoraWish(one.path or one.name or "", one.scale, field))
        return found

    def picture(self) -> PictureWish:
        """The picture that is drawn over; of the mask white is drawn anew."""
        strength = STRENGTH_DEFAULT if self.prompt_strength is None else self.prompt_strength
        return PictureWish(self.image, self.mask, strength, "input.image", "input.mask")

    def as_asked(self, native_side: int) -> GenerateIn:
        """The same wish in the API's own words, its LoRAs left out but for the prompt's tags.

        Raises:
            InvalidPrompt, InvalidRequest: a field is wrong, or cannot be had.
        """
        if self.refine not in (None, "no_refiner"):
            raise _wrong("refine", "there is no refiner here: send no_refiner")
        tagged = read_tags(self.prompt)
        width, height = self._size(native_side)
        values: dict[str, Any] = {
            "prompt": tagged.prompt,
            "negative_prompt": self.negative_prompt,
            "width": width,
            "height": height,
            "num_images": self.num_outputs,
            "scheduler": self._sampler(),
            "steps": STEPS_DEFAULT
            if self.num_inference_steps is None
            else self.num_inference_steps,
            "cfg": CFG_DEFAULT if self.guidance_scale is None else self.guidance_scale,
            "seed": self.seed,
            "output_format": self.output_format
            and _FORMATS.get(self.output_format, self.output_format),
            "loras": [use.model_dump(exclude_none=True) for use in tagged.loras] or None,
        }
        return read_as(GenerateIn, {k: v for k, v in values.items() if v is not None})

    def _sampler(self) -> str | None:
        if self.scheduler is None:
            return None
        name = _SAMPLERS.get(self.scheduler)
        if name is None:
            found = scheduler_named(self.scheduler)
            if found is None:
                raise _wrong("scheduler", f"must be one of {', '.join(_SAMPLERS)}")
            name = found.value
        return name

    def _size(self, native_side: int) -> tuple[int | None, int | None]:
        if self.width or self.height:
            return self.width, self.height
        if self.size is not None:  # as the AI SDK names it
            sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", self.size)
            if sides is None:
                raise _wrong("size", "must be WIDTHxHEIGHT, such as 1024x768")
            return int(sides[1]), int(sides[2])
        if self.aspect_ratio is None:
            return None, None
        if self.aspect_ratio not in _RATIOS:
            raise _wrong("aspect_ratio", f"must be one of {', '.join(_RATIOS)}")
        width, height = _RATIOS[self.aspect_ratio]
        return round(width * native_side / 8192) * 8, round(height * native_side / 8192) * 8


# Our names of fields → the callers'.
FIELDS = {
    "prompt": "input.prompt",
    "negative_prompt": "input.negative_prompt",
    "width": "input.width",
    "height": "input.height",
    "steps": "input.num_inference_steps",
    "cfg": "input.guidance_scale",
    "seed": "input.seed",
    "num_images": "input.num_outputs",
    "scheduler": "input.scheduler",
    "image.image_id": "input.image",
    "mask.image_id": "input.mask",
    "strength": "input.prompt_strength",
}


class PredictionIn(BaseModel):
    """`POST /predictions`."""

    model_config = ConfigDict(extra="ignore")

    version: Annotated[Storable, Field(max_length=300)] | None = None
    input: dict[str, Any]
    webhook: Storable | None = None
    webhook_completed: Storable | None = None
    webhook_events_filter: list[Event] | None = Field(default=None, max_length=20)

    @property
    def events(self) -> list[str]:
        """What the webhook is told of; `start` and `completed` as Replicate always sends them."""
        asked = self.webhook_events_filter
        if self.webhook is None:
            return ["completed"]
        kinds = ["start", "output", "completed"] if asked is None else asked
        return list(dict.fromkeys(kind for kind in kinds if kind != "logs"))


_WAIT = re.compile(r"\bwait(?:\s*=\s*([0-9]{1,4}))?", re.IGNORECASE)
WAIT_SECONDS = 60.0


def wait_seconds(prefer: str) -> float:
    """How long the header `Prefer` asks to wait; 0 where it does not."""
    match = _WAIT.search(prefer)
    if match is None:
        return 0.0
    return min(float(match[1]), WAIT_SECONDS) if match[1] else WAIT_SECONDS


def _wrong(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"input.{field}: {what}", details={"field": f"input.{field}"})
