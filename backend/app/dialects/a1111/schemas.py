"""What A1111's clients send: much more than is meant, so unknown keys and nulls are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from app.dialects.a1111.controlnet import SCRIPT
from app.dialects.a1111.samplers import joined
from app.dialects.a1111.values import OFF, Number, Whole, not_offered
from app.dialects.asking import read_as
from app.dialects.from_pictures import picture_of
from app.dialects.lora_tags import read_tags
from app.schemas.common import Storable
from app.schemas.content import GenerateIn, LoraUse
from sdxl_contract.drawing.hires import LANCZOS, LATENT
from sdxl_contract.drawing.samplers import Scheduler
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.prompts.words import PromptSyntax

STEPS_DEFAULT, CFG_DEFAULT = 50, 7.0
# Of `denoising_strength` in A1111's API.
_STRENGTH = 0.75
_SAME = frozenset({"", "use same sampler"})
_SCALES_DIFFER = 0.02
# What clients send of themselves: left out, of samplers that add no noise, of those that do.
_ETAS = (None, 0.0, 1.0)
_BLUR = 4


class Txt2ImgIn(BaseModel):
    """`POST /txt2img`, as far as it has a meaning here."""

    model_config = ConfigDict(extra="ignore")

    prompt: Storable | None = ""
    negative_prompt: Storable | None = ""
    styles: list[Storable | None] | None = None
    seed: Whole = -1
    steps: Whole = STEPS_DEFAULT
    cfg_scale: Number = CFG_DEFAULT
    width: Whole = None
    height: Whole = None
    batch_size: Whole = 1
    n_iter: Whole = 1
    sampler_name: Storable | None = None
    sampler_index: Storable | None = None
    scheduler: Storable | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True

    enable_hr: bool | None = False
    hr_scale: Number = 2.0
    hr_upscaler: Storable | None = None
    hr_second_pass_steps: Whole = 0
    hr_resize_x: Whole = 0
    hr_resize_y: Whole = 0
    hr_sampler_name: Storable | None = None
    hr_scheduler: Storable | None = None
    hr_prompt: Storable | None = ""
    hr_negative_prompt: Storable | None = ""
    hr_cfg: Number = None
    hr_checkpoint_name: Storable | None = None
    denoising_strength: Number = None
    restore_faces: bool | None = False
    tiling: bool | None = False
    script_name: Storable | None = None
    subseed_strength: Number = 0.0
    seed_resize_from_h: Whole = -1
    seed_resize_from_w: Whole = -1
    s_churn: Number = 0.0
    s_min_uncond: Number = 0.0
    eta: Number = None
    refiner_checkpoint: Storable | None = None
    firstpass_image: Any = None
    infotext: Any = None
    alwayson_scripts: dict[str, Any] | None = None

    def check_offered(self) -> None:
        """Refuse what would change the picture and is not offered here.

        Raises:
            InvalidRequest: names the field.
        """
        for field in (
            "restore_faces", "tiling", "script_name", "subseed_strength", "s_churn",
            "refiner_checkpoint", "s_min_uncond", "firstpass_image", "infotext",
        ):  # fmt: skip
            if getattr(self, field) not in OFF:
                raise not_offered(field)
        if self.eta not in _ETAS:
            raise not_offered("eta")
        if (self.seed_resize_from_h or 0) > 0 and (self.seed_resize_from_w or 0) > 0:
            raise not_offered("seed_resize_from_h")
        if (self.override_settings or {}).get("sd_vae") not in (*OFF, "Automatic"):
            raise not_offered("override_settings.sd_vae")
        for name, script in (self.alwayson_scripts or {}).items():
            if name.lower() != SCRIPT and _is_on(script):
                raise not_offered(f"alwayson_scripts.{name[:60]}")

    @property
    def checkpoint(self) -> str | None:
        """The base model that is asked for."""
        name = (self.override_settings or {}).get("sd_model_checkpoint")
        return None if name in OFF else str(name)

    def as_asked(self) -> GenerateIn:
        """The same wish in the API's own words.

        Raises:
            InvalidPrompt, InvalidRequest, NotFound: a field is wrong, or cannot be had.
        """
        self.check_offered()
        tagged = read_tags(self.prompt or "")
        values: dict[str, Any] = {
            "prompt": tagged.prompt,
            "negative_prompt": self.negative_prompt,
            "prompt_syntax": PromptSyntax.A1111,
            # Clients say "none" in each of these ways.
            "styles": [name for name in self.styles or () if name not in (None, "", "None")],
            "width": self.width,
            "height": self.height,
            "steps": STEPS_DEFAULT if self.steps is None else self.steps,
            "cfg": CFG_DEFAULT if self.cfg_scale is None else self.cfg_scale,
            "seed": None if self.seed is None or self.seed < 0 else self.seed,
            "num_images": _count("batch_size", self.batch_size) * _count("n_iter", self.n_iter),
            "scheduler": joined(self.sampler_name or self.sampler_index, self.scheduler),
        }
        if self.enable_hr:
            values["hires"] = self.second_pass(tagged.loras)
        if tagged.loras:
            values["loras"] = [use.model_dump(exclude_none=True) for use in tagged.loras]
        return read_as(GenerateIn, {k: v for k, v in values.items() if v is not None})

    def second_pass(self, loras: list[LoraUse]) -> dict[str, Any]:
        """`enable_hr` in the API's own words.

        Raises:
            InvalidRequest, NotFound: a field is wrong, or cannot be had.
        """
        if self.hr_checkpoint_name not in (None, "", "Use same checkpoint"):
            raise not_offered("hr_checkpoint_name")
        tagged = read_tags(self.hr_prompt or "")
        if tagged.loras not in ([], loras):
            raise InvalidRequest(
                "hr_prompt: has other LoRAs than prompt: both passes have the same",
                details={"field": "hr_prompt"},
            )
        values = {
            "scale": self._hr_scale(),
            "upscaler": _upscaler(self.hr_upscaler),
            "steps": self.hr_second_pass_steps or 0,
            "strength": _STRENGTH if self.denoising_strength is None else self.denoising_strength,
            "prompt": tagged.prompt or None,
            "negative_prompt": self.hr_negative_prompt or None,
            "cfg": self.hr_cfg or None,
            "scheduler": _hr_sampler(self.hr_sampler_name, self.hr_scheduler),
        }
        return {name: value for name, value in values.items() if value is not None}

    def _hr_scale(self) -> float:
        wanted = (self.hr_resize_x or 0, self.hr_resize_y or 0)
        if not any(wanted):
            return 2.0 if self.hr_scale is None else self.hr_scale
        sides = (self.width or 0, self.height or 0)
        scales = [there / here for here, there in zip(sides, wanted, strict=True) if there and here]
        if len(scales) < sum(map(bool, wanted)) or max(scales) - min(scales) > _SCALES_DIFFER:
            raise InvalidRequest(
                "hr_resize_x: with hr_resize_y it must be width and height times one number",
                details={"field": "hr_resize_x"},
            )
        return min(scales)


class Img2ImgIn(Txt2ImgIn):
    """`POST /img2img`: of a mask white is drawn anew."""

    init_images: list[Any] | None = None
    mask: Any = None
    denoising_strength: Number = _STRENGTH
    resize_mode: Whole = 0
    mask_blur: Whole = None
    mask_blur_x: Whole = _BLUR
    mask_blur_y: Whole = _BLUR
    inpainting_fill: Whole = 0
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: Whole = 0
    inpainting_mask_invert: Whole = 0
    latent_mask: Any = None
    initial_noise_multiplier: Number = None

    def check_offered(self) -> None:
        """Likewise; a second pass is of drawings from words."""
        super().check_offered()
        for field in ("enable_hr", "latent_mask"):
            if getattr(self, field) not in OFF:
                raise not_offered(field)
        if self.initial_noise_multiplier not in (None, 1.0):
            raise not_offered("initial_noise_multiplier")
        if self.mask_blur is None and self.mask_blur_x != self.mask_blur_y:
            raise not_offered("mask_blur_x")

    @property
    def source(self) -> bytes:
        """The one picture to draw from.

        Raises:
            InvalidRequest: there is none, or more than one.
        """
        if len(self.init_images or ()) != 1:
            raise InvalidRequest(
                "init_images: must hold one picture", details={"field": "init_images"}
            )
        return picture_of((self.init_images or [None])[0], "init_images")

    def from_picture(self, image: dict[str, Any], mask: dict[str, Any] | None) -> GenerateIn:
        """The same wish in the API's own words.

        Raises:
            As `as_asked`.
        """
        values = self.as_asked().model_dump(exclude_unset=True, mode="json")
        if self.resize_mode not in (None, 0, 1):
            raise not_offered("resize_mode")
        values |= {
            "image": image,
            "strength": _STRENGTH if self.denoising_strength is None else self.denoising_strength,
            "fit": "crop" if self.resize_mode == 1 else "stretch",
        }
        if mask is not None:
            fills = ("surroundings", "original", "noise", "nothing")
            fill = self.inpainting_fill or 0
            if not 0 <= fill < len(fills):
                raise InvalidRequest(
                    "inpainting_fill: must be 0 to 3", details={"field": "inpainting_fill"}
                )
            values["mask"] = {**mask, "invert": bool(self.inpainting_mask_invert)}
            values["inpaint"] = {
                "area": "whole" if self.inpaint_full_res is False else "masked",
                "padding": self.inpaint_full_res_padding or 0,
                "blur": self._blur(),
                "fill": fills[fill],
            }
        return read_as(GenerateIn, values)

    def _blur(self) -> int:
        blur = self.mask_blur_x if self.mask_blur is None else self.mask_blur
        return _BLUR if blur is None else blur


class ExtrasIn(BaseModel):
    """`POST /extra-single-image`: one picture, enlarged."""

    model_config = ConfigDict(extra="ignore")

    image: Any = None
    resize_mode: Whole = 0
    upscaling_resize: Number = 2.0
    upscaler_1: Storable | None = "None"
    upscaler_2: Storable | None = "None"
    extras_upscaler_2_visibility: Number = 0.0
    gfpgan_visibility: Number = 0.0
    codeformer_visibility: Number = 0.0

    def check_offered(self) -> None:
        """Refuse what would change the picture and is not offered here.

        Raises:
            InvalidRequest: names the field.
        """
        for field in (
            "resize_mode", "gfpgan_visibility", "codeformer_visibility",
            "extras_upscaler_2_visibility",
        ):  # fmt: skip
            if getattr(self, field) not in OFF:
                raise not_offered(field)

    def from_picture(self, image: dict[str, Any]) -> GenerateIn:
        """The same wish in the API's own words.

        Raises:
            InvalidRequest: a field is wrong.
        """
        name = "lanczos" if self.upscaler_1 in OFF else _upscaler(self.upscaler_1)
        scale = 2.0 if self.upscaling_resize is None else self.upscaling_resize
        values = {"image": image, "upscale": {"upscaler": name, "scale": scale}}
        return read_as(GenerateIn, values)


def _count(field: str, value: int | None) -> int:
    if value is not None and value < 1:
        raise InvalidRequest(f"{field}: must be at least 1", details={"field": field})
    return 1 if value is None else value


def _upscaler(name: str | None) -> str:
    """Ours for A1111's name; those that it has from files keep theirs."""
    name = (name or "").strip()
    return {"": LATENT, "latent": LATENT, "lanczos": LANCZOS}.get(name.lower(), name)


def _hr_sampler(sampler: str | None, spacing: str | None) -> Scheduler | None:
    if (sampler or "").strip().lower() in _SAME:
        sampler = None
    return joined(sampler, spacing)


def _is_on(script: object) -> bool:
    arguments = script.get("args") if isinstance(script, dict) else script
    if isinstance(arguments, dict):
        arguments = [arguments]
    if not isinstance(arguments, list):
        return False
    return any(
        argument is True or (isinstance(argument, dict) and bool(argument.get("enabled", True)))
        for argument in arguments
    )
