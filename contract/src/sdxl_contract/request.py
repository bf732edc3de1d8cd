"""The body of `POST /generate-image`: what a picture is to be.

Duty: hold a request's fields, defaults and ranges, and turn a wrong one into an error that
names the field and says what would be right.
Must not know: which base model is loaded (see `limits.ModelLimits`, checked by `check_limits`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sdxl_contract import limits
from sdxl_contract.drawing.controls import CONTROLS_MAX, Control
from sdxl_contract.drawing.hires import BUILT_IN, LANCZOS, SCHEDULE_MAX, Hires
from sdxl_contract.drawing.references import REFERENCES_MAX, Reference
from sdxl_contract.drawing.samplers import RETIRED_SCHEDULERS as RETIRED_SCHEDULERS
from sdxl_contract.drawing.samplers import Scheduler as Scheduler
from sdxl_contract.drawing.samplers import scheduler_named as scheduler_named
from sdxl_contract.drawing.upscaling import STRANGERS, Upscale
from sdxl_contract.errors import ContractError, InvalidPrompt, InvalidRequest
from sdxl_contract.fields import NullIsLeftOut, known_sha256, no_bool
from sdxl_contract.limits import ModelLimits
from sdxl_contract.pictures import FromPicture, PictureRef, drawn_steps
from sdxl_contract.prompts.words import FromWords, Timeline, check_size, read_words

Url = Annotated[str, Field(min_length=1, max_length=limits.URL_MAX_CHARS)]
Sha256 = Annotated[str, Field(min_length=64, max_length=64, description="lower-case hex")]


class OutputFormat(StrEnum):
    """How the image is encoded."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class LoraRef(NullIsLeftOut):
    """One LoRA of a request: where to fetch it, and how strongly to apply it."""

    url: str = Field(min_length=1, max_length=limits.URL_MAX_CHARS, repr=False)
    scale: float = Field(default=1.0, ge=limits.SCALE_MIN, le=limits.SCALE_MAX, allow_inf_nan=False)
    sha256: str | None = Field(default=None, description="lets the worker hit its cache")
    name: str | None = Field(default=None, max_length=200)

    _sha256 = field_validator("sha256")(known_sha256)
    _number = field_validator("scale", mode="before")(no_bool)


class GenerateRequest(FromPicture, FromWords):
    """A request for one picture (or `num_images` of them), as the worker receives it.

    `width` and `height` left out mean the base model's native side: 1024 px for SDXL.
    A field that this version does not know is an error, so that a misspelt one is not ignored.
    `output_urls` holds one URL for each picture, `output_url` is its one-picture short form.
    """

    lora_url: str | None = Field(
        default=None, min_length=1, max_length=limits.URL_MAX_CHARS, repr=False
    )
    lora_scale: float = Field(
        default=limits.SHORT_SCALE_DEFAULT,
        ge=limits.SHORT_SCALE_MIN,
        le=limits.SHORT_SCALE_MAX,
        allow_inf_nan=False,
    )
    width: int | None = Field(default=None, ge=1, le=16384, description="px")
    height: int | None = Field(default=None, ge=1, le=16384, description="px")
    steps: int = Field(default=limits.STEPS_DEFAULT, ge=limits.STEPS_MIN, le=limits.STEPS_MAX)
    cfg: float = Field(
        default=limits.CFG_DEFAULT, ge=limits.CFG_MIN, le=limits.CFG_MAX, allow_inf_nan=False
    )
    guidance_rescale: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="towards the spread of the unguided picture; models with zero terminal SNR "
        "want about 0.7",
    )
    seed: int | None = Field(default=None, ge=0, le=limits.SEED_MAX)
    timeout: int = Field(
        default=limits.TIMEOUT_DEFAULT_S, ge=1, le=limits.TIMEOUT_MAX_S, description="seconds"
    )

    loras: list[LoraRef] = Field(default_factory=list, max_length=limits.MAX_LORAS)
    lora_sha256: str | None = None
    output_url: str | None = Field(
        default=None, min_length=1, max_length=limits.URL_MAX_CHARS, repr=False
    )
    output_urls: list[Url] = Field(default_factory=list, max_length=limits.MAX_IMAGES, repr=False)
    output_format: OutputFormat = OutputFormat.PNG
    scheduler: Scheduler = Scheduler.DEFAULT
    hires: Hires | None = Field(default=None, description="a second, larger pass")
    controls: list[Control] = Field(
        default_factory=list, max_length=CONTROLS_MAX, description="networks that hold the drawing"
    )
    references: list[Reference] = Field(
        default_factory=list,
        max_length=REFERENCES_MAX,
        description="pictures whose look the drawing takes up",
    )
    upscale: Upscale | None = Field(
        default=None, description="enlarges image and draws nothing; the prompt has no part in it"
    )
    num_images: int = Field(default=1, ge=1, le=limits.MAX_IMAGES)
    request_id: str | None = Field(
        default=None, min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$"
    )

    _sha256 = field_validator("lora_sha256")(known_sha256)

    _numbers = field_validator(
        "seed", "steps", "width", "height", "timeout", "num_images", "cfg", "lora_scale",
        "guidance_rescale", "clip_skip",
        mode="before",
    )(no_bool)  # fmt: skip

    @field_validator("scheduler", mode="before")
    @classmethod
    def _known_spelling(cls, value: object) -> object:
        return (scheduler_named(value) or value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way_to_name_loras(self) -> GenerateRequest:
        if self.loras and self.lora_url is not None:
            raise PydanticCustomError(
                "two_ways",
                "lora_url and loras are two ways to say the same: send one of them",
                {"field": "loras"},
            )
        if self.lora_sha256 is not None and self.lora_url is None:
            raise PydanticCustomError(
                "alone", "belongs to lora_url, which is missing", {"field": "lora_sha256"}
            )
        return self

    @model_validator(mode="after")
    def _a_place_for_each_image(self) -> GenerateRequest:
        if self.output_url is not None and self.output_urls:
            raise PydanticCustomError(
                "two_ways",
                "output_url and output_urls are two ways to say the same: send one of them",
                {"field": "output_urls"},
            )
        if self.output_url is not None and self.num_images > 1:
            raise PydanticCustomError(
                "one_place",
                "takes one image and num_images is {count}: send output_urls with one URL for each",
                {"field": "output_url", "count": self.num_images},
            )
        if self.output_urls and len(self.output_urls) != self.num_images:
            raise PydanticCustomError(
                "places",
                "has {found} URLs and num_images is {count}: send one URL for each image",
                {"field": "output_urls", "found": len(self.output_urls), "count": self.num_images},
            )
        if len(set(self.output_urls)) != len(self.output_urls):
            raise PydanticCustomError(
                "same_place",
                "names one URL twice: the second image would replace the first",
                {"field": "output_urls"},
            )
        return self

    @model_validator(mode="after")
    def _draws_at_least_a_step(self) -> GenerateRequest:
        if self.upscale is None and self.steps_to_draw() < 1:
            raise PydanticCustomError(
                "no_step",
                "is {strength} and steps is {steps}: their product must be at least 1",
                {"field": "strength", "strength": self.drawing_strength(), "steps": self.steps},
            )
        return self

    @model_validator(mode="after")
    def _second_pass(self) -> GenerateRequest:
        if self.hires is None:
            return self
        if self.image is not None:
            raise PydanticCustomError(
                "hires", "belongs to drawings from words, not to image", {"field": "hires"}
            )
        schedule = self.hires.schedule(self.steps)
        if schedule > SCHEDULE_MAX:
            raise PydanticCustomError(
                "schedule",
                "is {strength} with {steps} steps, which makes a schedule of {schedule}: at most "
                "{maximum}",
                {
                    "field": "hires.strength", "strength": self.hires.strength,
                    "steps": self.hires.drawn_steps(self.steps), "schedule": schedule,
                    "maximum": SCHEDULE_MAX,
                },
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _only_enlarges(self) -> GenerateRequest:
        if self.upscale is None:
            return self
        if self.image is None:
            raise PydanticCustomError(
                "alone", "belongs to image, which is missing", {"field": "upscale"}
            )
        for field in STRANGERS:
            if getattr(self, field) is not None:
                raise PydanticCustomError(
                    "upscale", "has no part in upscale: leave it off", {"field": field}
                )
        for field, is_sent in (
            ("loras", bool(self.loras)),
            ("embeddings", bool(self.embeddings)),
            ("controls", bool(self.controls)),
            ("references", bool(self.references)),
            ("clip_skip", self.clip_skip is not None),
            ("num_images", self.num_images > 1),
        ):
            if is_sent:
                raise PydanticCustomError(
                    "upscale", "has no part in upscale: leave it off", {"field": field}
                )
        return self

    def steps_to_draw(self) -> int:
        """How many steps the first pass draws: all, or a source's share of them, or none."""
        if self.upscale is not None:
            return 0
        if self.image is None:
            return self.steps
        return drawn_steps(self.steps, self.drawing_strength())

    def all_steps(self) -> int:
        """How many steps each picture takes, those of a second pass included."""
        second = self.hires.drawn_steps(self.steps) if self.hires else 0
        return self.steps_to_draw() + second

    def words(self) -> list[tuple[str, str]]:
        """(field, text) of what the pictures are asked to show."""
        second = self.hires.prompt if self.hires is not None else None
        return [("prompt", self.prompt), *([("hires.prompt", second)] if second else [])]

    def cost(self) -> float:
        """What each picture costs, in steps of its first pass."""
        second = self.hires.cost(self.steps) if self.hires else 0.0
        return self.steps_to_draw() + second

    def places(self) -> list[tuple[str, str]]:
        """(field, URL) to which each image is uploaded, in order; empty: they are answered."""
        if self.output_url is not None:
            return [("output_url", self.output_url)]
        return [(f"output_urls[{n}]", url) for n, url in enumerate(self.output_urls)]

    def check_prompts(self) -> None:
        """Read every prompt's syntax.

        Raises:
            InvalidPrompt: a mark is malformed, there are too many, or the text names a LoRA.
            InvalidRequest: no prompt has an embedding's token.
        """
        check_size([side for sides in self.timelines() for side in sides])
        self.check_embeddings([text for _, text in self._texts()])

    def timelines(self) -> list[tuple[Timeline, Timeline]]:
        """The prompt's and the negative prompt's words over the steps of each pass.

        Raises:
            InvalidPrompt: a mark cannot be read; the message names the field.
        """
        # What only enlarges has no steps, and words that are kept beside it.
        hires, syntax, first = self.hires, self.prompt_syntax, max(self.steps_to_draw(), 1)
        passes = 1 if hires is None else 2
        prompt, negative = ("prompt", self.prompt), ("negative_prompt", self.negative_prompt)

        def read(named: tuple[str, str], steps: int, after: int | None = None) -> Timeline:
            field, text = named
            return read_words(text, syntax, steps, field, after=after, passes=passes)

        sides = [(read(prompt, first), read(negative, first))]
        if hires is not None:
            second = hires.drawn_steps(self.steps)
            if hires.prompt is not None:
                prompt = ("hires.prompt", hires.prompt)
            if hires.negative_prompt is not None:
                negative = ("hires.negative_prompt", hires.negative_prompt)
            sides.append((read(prompt, second, first), read(negative, second, first)))
        return sides

    def lora_refs(self) -> list[LoraRef]:
        """The LoRAs asked for, the short form included, in the request's order."""
        if self.lora_url is None:
            return list(self.loras)
        return [LoraRef(url=self.lora_url, scale=self.lora_scale, sha256=self.lora_sha256)]

    def size(self, model: ModelLimits) -> tuple[int, int]:
        """(width, height) in px, the model's native side where the request names none."""
        return self.width or model.native_size, self.height or model.native_size

    def check_limits(self, model: ModelLimits) -> None:
        """Hold the request against the loaded base model's own limits.

        Raises:
            InvalidPrompt: the prompt is longer than the model's limit.
            InvalidRequest: the sampler is retired, or a side, a clip_skip, or the number of LoRAs
                or images, is not allowed.
        """
        for field, sampler in self.samplers():
            instead = RETIRED_SCHEDULERS.get(sampler)
            if instead is not None:
                raise InvalidRequest(
                    f"{field} '{sampler}' is no longer available: use '{instead}'",
                    details={"field": field, "instead": instead.value},
                )
        for field, text in self._texts():
            if len(text) > model.prompt_max_chars:
                raise InvalidPrompt(
                    f"{field} has {len(text)} characters: at most {model.prompt_max_chars}",
                    details={"field": field, "maximum": model.prompt_max_chars},
                )
        for field, side in zip(("width", "height"), self.size(model), strict=True):
            problem = model.side_problem(field, side)
            if problem is not None:
                raise InvalidRequest(
                    problem, details={"field": field, "nearest": model.nearest_side(side)}
                )
        if self.hires is not None:
            self._check_second_pass(self.hires, model)
        if (self.clip_skip or 0) > model.clip_skip_max:
            raise InvalidRequest(
                f"clip_skip is {self.clip_skip}: the model's text encoders allow at most "
                f"{model.clip_skip_max}",
                details={"field": "clip_skip", "maximum": model.clip_skip_max},
            )
        self._check_controls(model)
        self._check_references(model)
        if self.upscale is not None:
            self._check_upscaler("upscale", self.upscale.upscaler, (LANCZOS,), model)
        if len(self.loras) > model.max_loras:
            raise InvalidRequest(
                f"loras has {len(self.loras)} items: at most {model.max_loras}",
                details={"field": "loras", "maximum": model.max_loras},
            )
        if self.num_images > model.max_images:
            raise InvalidRequest(
                f"num_images is {self.num_images}: at most {model.max_images}",
                details={"field": "num_images", "maximum": model.max_images},
            )

    def pictures(self) -> list[tuple[str, PictureRef]]:
        """(field, reference) of every picture that has to be fetched; the controls' and then the
        references' last.
        """
        held = [(f"controls[{n}].image", one.image) for n, one in enumerate(self.controls)]
        shown = [(f"references[{n}].image", one.image) for n, one in enumerate(self.references)]
        return [*super().pictures(), *held, *shown]

    def _check_controls(self, model: ModelLimits) -> None:
        known = {one.name: one for one in model.controls}
        for number, one in enumerate(self.controls):
            field = f"controls[{number}]"
            if one.model not in known:
                raise InvalidRequest(
                    f"{field}.model: this worker has no control network of that name; it has "
                    + (", ".join(known) or "none"),
                    details={"field": f"{field}.model", "allowed": list(known)},
                )
            types = known[one.model].types
            if one.type not in (types or (None,)):
                raise InvalidRequest(
                    f"{field}.type: {one.model} "
                    + (f"has {', '.join(types)}" if types else "knows one only: leave it off"),
                    details={"field": f"{field}.type", "allowed": list(types)},
                )

    def _check_references(self, model: ModelLimits) -> None:
        known = [one.name for one in model.adapters]
        for number, one in enumerate(self.references):
            if one.adapter not in known:
                field = f"references[{number}].adapter"
                raise InvalidRequest(
                    f"{field}: this worker has no adapter of that name; it has "
                    + (", ".join(known) or "none"),
                    details={"field": field, "allowed": known},
                )

    def samplers(self) -> list[tuple[str, Scheduler]]:
        """(field, sampler) of each pass."""
        named = [("scheduler", self.scheduler)]
        if self.hires is not None and self.hires.scheduler is not None:
            named.append(("hires.scheduler", self.hires.scheduler))
        return named

    def _texts(self) -> list[tuple[str, str]]:
        texts = [("prompt", self.prompt), ("negative_prompt", self.negative_prompt)]
        if self.hires is not None:
            texts += [
                ("hires.prompt", self.hires.prompt or ""),
                ("hires.negative_prompt", self.hires.negative_prompt or ""),
            ]
        return texts

    @staticmethod
    def _check_upscaler(
        field: str, name: str, built_in: tuple[str, ...], model: ModelLimits
    ) -> None:
        offered = [*built_in, *(one.name for one in model.upscalers)]
        if name not in offered:
            raise InvalidRequest(
                f"{field}.upscaler: this worker has no upscaler of that name; it has "
                + ", ".join(offered),
                details={"field": f"{field}.upscaler", "allowed": offered},
            )

    def _check_second_pass(self, hires: Hires, model: ModelLimits) -> None:
        self._check_upscaler("hires", hires.upscaler, BUILT_IN, model)
        size = self.size(model)
        larger = hires.size(size, model.multiple_of)
        if max(larger) > model.hires_max_side:
            raise InvalidRequest(
                f"hires.scale is {hires.scale:g}, which makes {larger[0]}x{larger[1]}: at most "
                f"{model.hires_max_side} px a side",
                details={"field": "hires.scale", "maximum": model.hires_max_side},
            )
        if larger[0] <= size[0] or larger[1] <= size[1]:
            raise InvalidRequest(
                f"hires.scale is {hires.scale:g}, which makes {larger[0]}x{larger[1]}, no larger "
                f"than the first pass: sides are multiples of {model.multiple_of}",
                details={"field": "hires.scale"},
            )
        # As much as a worker without second passes can be asked for.
        most = limits.STEPS_MAX * model.max_side**2 * model.max_images
        work = self.num_images * (
            self.steps * size[0] * size[1] + hires.drawn_steps(self.steps) * larger[0] * larger[1]
        )
        if work > most:
            raise InvalidRequest(
                f"hires.steps: with {self.num_images} images of {larger[0]}x{larger[1]} the second "
                "pass is too much work: fewer steps, fewer images or a smaller scale",
                details={"field": "hires.steps"},
            )


def field_path(location: Sequence[str | int]) -> str:
    """`("loras", 0, "scale")` → `loras[0].scale`, as people write it."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


_BOUNDS = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "min_length",
    "max_length": "max_length",
}


def _bounds(context: Mapping[str, Any]) -> dict[str, float]:
    """The bounds that a value broke, for programs that word it themselves."""
    return {
        name: context[bound]
        for bound, name in _BOUNDS.items()
        if isinstance(context.get(bound), int | float)
    }


def explain_validation(errors: Sequence[Mapping[str, Any]]) -> ContractError:
    """The contract's error for what pydantic found (`ValidationError.errors()`).

    The offending values stay out of the message except numbers: a value may be a signed URL.
    """
    first = errors[0]
    # FastAPI puts "body" in front; the caller knows that.
    location = [part for part in first["loc"] if part != "body"]
    context = first.get("ctx") or {}
    field = field_path(location) or context.get("field") or "request"
    reason = str(first["msg"]).removeprefix("Value error, ")
    value = first.get("input")
    shown = f" (got {value})" if isinstance(value, int | float) else ""
    if first["type"] == "missing":
        reason = "is required"
    elif first["type"] == "extra_forbidden":
        reason = "is not a field of this request"
    elif first["type"] == "json_invalid":
        field, reason, shown = (
            "request",
            f"must be a JSON object, and is not valid JSON ({context.get('error')})",
            "",
        )
    elif first["type"] in ("model_attributes_type", "model_type"):
        reason, shown = "must be a JSON object", ""
    elif "ge" in context or "le" in context:
        reason = "must be " + " and ".join(
            f"at {'least' if bound == 'ge' else 'most'} {context[bound]}"
            for bound in ("ge", "le")
            if bound in context
        )
    details = {
        "field": field,
        "kind": first["type"],
        **_bounds(context),
        "problems": [
            {
                "field": field_path([p for p in e["loc"] if p != "body"])
                or (e.get("ctx") or {}).get("field")
                or "request",
                "problem": str(e["msg"]).removeprefix("Value error, "),
            }
            for e in errors[:20]
        ],
    }
    message = f"{field}: {reason}{shown}"
    if field == "prompt":
        return InvalidPrompt(message, details=details)
    return InvalidRequest(message, details=details)


def parse_request(body: bytes | str) -> GenerateRequest:
    """Read a request's JSON.

    Raises:
        InvalidPrompt: the prompt is missing, blank or not text.
        InvalidRequest: anything else is wrong; the message names the field.
    """
    try:
        request = GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        raise explain_validation(error.errors(include_url=False, include_context=True)) from None
    if not request.prompt.strip() and request.upscale is None:
        raise InvalidPrompt(
            "prompt is blank: say what the picture shows", details={"field": "prompt"}
        )
    return request


def dump_request(request: GenerateRequest) -> bytes:
    """The JSON that carries `request`, without the fields left at their default."""
    return json.dumps(
        request.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False
    ).encode()
