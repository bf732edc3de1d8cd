"""`/sdapi/v1`: drawing, stopping, and reading a picture's parameters."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from app.api.deps import CallerDep, Rights, RightsDep, ServicesDep
from app.dialects.a1111.controlnet import read_units, unit_fields, with_units
from app.dialects.a1111.discovery import check_checkpoint, model_name
from app.dialects.a1111.errors import as_a1111
from app.dialects.a1111.infotext import infotext, png_texts, read_infotext, with_sides
from app.dialects.a1111.jobs import mark_of, progress, stop_all
from app.dialects.a1111.samplers import shown
from app.dialects.a1111.schemas import ExtrasIn, Img2ImgIn, Txt2ImgIn
from app.dialects.asking import (
    failure_of,
    fields_called,
    read_as,
    read_images,
    read_json,
    submit,
    until_ended,
)
from app.dialects.from_pictures import kept_picture, picture_of
from app.dialects.pictures import as_base64
from app.dialects.subapp import json_body
from app.models import Content

_FIELDS = {
    "cfg": "cfg_scale",
    "num_images": "batch_size",
    "strength": "denoising_strength",
    "inpaint.blur": "mask_blur",
    "inpaint.padding": "inpaint_full_res_padding",
    "hires": "enable_hr",
    "hires.strength": "denoising_strength",
    "hires.scale": "hr_scale",
    "hires.upscaler": "hr_upscaler",
    "hires.steps": "hr_second_pass_steps",
    "hires.scheduler": "hr_sampler_name",
    "hires.cfg": "hr_cfg",
    "hires.prompt": "hr_prompt",
    "hires.negative_prompt": "hr_negative_prompt",
}
_EXTRAS_FIELDS = {"upscale.upscaler": "upscaler_1", "upscale.scale": "upscaling_resize"}
router = APIRouter()


@router.post("/v1/txt2img", openapi_extra=json_body(Txt2ImgIn), response_model=None)
async def txt2img(
    request: Request, caller: CallerDep, services: ServicesDep, rights: RightsDep
) -> Response:
    """Draw, and answer with the pictures."""
    with fields_called(_FIELDS):
        sent = await read_json(request)
        asked = read_as(Txt2ImgIn, sent)
        await check_checkpoint(services, asked.checkpoint)
        wish, units = asked.as_asked(), read_units(asked.alwayson_scripts)
        if units:
            await rights.check()
            wish = await with_units(services, caller, wish, units)
        with fields_called(unit_fields(units)):
            content, _ = await submit(services, caller, wish, mark=mark_of(caller))
    return await _answer(rights, content, asked)


async def _answer(rights: Rights, content: Content, asked: Txt2ImgIn) -> Response:
    services = rights.services
    content = await until_ended(rights, content)
    failure = failure_of(content)
    if failure is not None:
        return as_a1111(failure)
    texts = []
    if asked.send_images is not False:
        texts = [as_base64(data) for data in await read_images(services, content)]
    info = _info(content, asked, await model_name(services))
    return JSONResponse(
        {
            "images": texts,
            "parameters": asked.model_dump(exclude={"init_images", "mask", "alwayson_scripts"}),
            "info": json.dumps(info),
        }
    )


def _info(content: Content, asked: Txt2ImgIn, model: str) -> dict[str, Any]:
    parameters = with_sides(content)
    seeds = [image.seed for image in content.images]
    count = len(seeds)
    prompt, negative = asked.prompt or "", content.negative_prompt
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": parameters["width"],
        "height": parameters["height"],
        "steps": parameters["steps"],
        "cfg_scale": parameters["cfg"],
        "batch_size": count,
        "sampler_name": shown(parameters.get("scheduler"))[0],
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": getattr(asked, "denoising_strength", None),
        "extra_generation_params": {"content_id": str(content.id)},
        "index_of_first_image": 0,
        "infotexts": [infotext(content, prompt, seed, model) for seed in seeds],
        "styles": [],
        "job_timestamp": f"{content.created_at:%Y%m%d%H%M%S}",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": "",
    }


@router.post("/v1/img2img", openapi_extra=json_body(Img2ImgIn), response_model=None)
async def img2img(
    request: Request, caller: CallerDep, services: ServicesDep, rights: RightsDep
) -> Response:
    """Draw over a picture, or over what a mask shows white."""
    with fields_called(_FIELDS):
        asked = read_as(Img2ImgIn, await read_json(request))
        await rights.check()
        await check_checkpoint(services, asked.checkpoint)
        asked.as_asked()  # refuse what is wrong before anything is kept
        units = read_units(asked.alwayson_scripts)
        source = await kept_picture(services, caller, asked.source, "init_images")
        mask = None
        if asked.mask:
            data = picture_of(asked.mask, "mask")
            mask = await kept_picture(services, caller, data, "mask")
        wish = asked.from_picture(source, mask)
        wish = await with_units(services, caller, wish, units, source)
        with fields_called(unit_fields(units)):
            content, _ = await submit(services, caller, wish, mark=mark_of(caller))
    return await _answer(rights, content, asked)


@router.post("/v1/extra-single-image", openapi_extra=json_body(ExtrasIn), response_model=None)
async def extra_single_image(
    request: Request, caller: CallerDep, services: ServicesDep, rights: RightsDep
) -> Response:
    """Enlarge a picture."""
    with fields_called(_EXTRAS_FIELDS):
        asked = read_as(ExtrasIn, await read_json(request))
        asked.check_offered()
        data = picture_of(asked.image, "image")
        source = await kept_picture(services, caller, data, "image")
        wish = asked.from_picture(source)
        content, _ = await submit(services, caller, wish, mark=mark_of(caller))
    content = await until_ended(rights, content)
    failure = failure_of(content)
    if failure is not None:
        return as_a1111(failure)
    [picture] = await read_images(services, content)
    return JSONResponse({"html_info": "", "image": as_base64(picture)})


@router.get("/v1/progress")
async def read_progress(
    caller: CallerDep, services: ServicesDep, skip_current_image: bool = False
) -> dict[str, Any]:
    """How far the key's newest job is."""
    return await progress(services, caller, with_image=not skip_current_image)


@router.post("/v1/interrupt")
async def interrupt(caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """Stop the key's jobs."""
    await stop_all(services, caller)
    return {}


@router.post("/v1/skip")
async def skip(caller: CallerDep, services: ServicesDep) -> None:
    """Likewise."""
    await stop_all(services, caller)


class PngIn(BaseModel):
    """A picture to read."""

    model_config = ConfigDict(extra="ignore")

    image: str


@router.post("/v1/png-info", openapi_extra=json_body(PngIn))
async def png_info(request: Request, caller: CallerDep) -> dict[str, Any]:
    """The parameters that a PNG holds."""
    texts = png_texts(read_as(PngIn, await read_json(request)).image)
    info = texts.get("parameters", "")
    return {"info": info, "items": texts, "parameters": read_infotext(info) if info else {}}
