"""`/v1/images/edits`: a form with a picture, perhaps with a mask whose clear parts are redrawn."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from app.api.deps import CallerDep, RightsDep, ServicesDep
from app.dialects.asking import failure_of, fields_called, read_as, submit, until_ended
from app.dialects.from_pictures import kept_picture
from app.dialects.openai.answers import images_response, request_id, stream
from app.dialects.openai.errors import REQUEST_ID, as_openai
from app.dialects.openai.routes import FIELDS, RETRY_COUNT, check_model
from app.dialects.openai.schemas import ImagesIn
from app.schemas.content import GenerateIn
from sdxl_contract.errors import InvalidRequest

_MAX_FILES, _MAX_FIELDS = 4, 100
_NUMBERS = frozenset({"n", "output_compression", "partial_images", "seed", "steps", "cfg"})
_STRENGTH = "strength"
# `loras[][name]`, as OpenAI's clients flatten a list of objects.
_NESTED = re.compile(r"loras\[(\d{0,2})\]\[(name|scale|lora_model_id)\]")
# Other ways to write a list: each LoRA by its name alone, and places in it.
_NAMED = re.compile(r"loras(\[\d{0,2}\])?")
_IMAGE = re.compile(r"image(\[\d{0,2}\])?")
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "mask": {"type": "string", "format": "binary"},
                        "prompt": {"type": "string"},
                        "strength": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                }
            }
        },
    }
}
router = APIRouter()


@router.post("/images/edits", response_model=None, openapi_extra=_FORM)
async def edit(
    request: Request, caller: CallerDep, services: ServicesDep, rights: RightsDep
) -> Response:
    """Draw over a picture, or over what a mask leaves clear."""
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS) as form:
        await rights.check()
        with fields_called(FIELDS):
            asked = read_as(ImagesIn, _fields(form))
            await check_model(services, asked.model)
            values = asked.as_asked().model_dump(exclude_unset=True, mode="json")
            image, mask = await _files(form)
            values["image"] = await kept_picture(services, caller, image, "image")
            if mask is not None:
                # Clear (alpha 0) is drawn anew.
                values["mask"] = {
                    **await kept_picture(services, caller, mask, "mask"),
                    "channel": "alpha",
                    "invert": True,
                }
            if isinstance(strength := form.get(_STRENGTH), str):
                values[_STRENGTH] = _number(_STRENGTH, strength)
            joins = request.headers.get(RETRY_COUNT, "0") != "0"
            content, _ = await submit(services, caller, read_as(GenerateIn, values), joins=joins)
    headers = {REQUEST_ID: request_id(content)}
    if asked.stream:
        return StreamingResponse(
            stream(rights, content, asked, kind="image_edit"),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", **headers},
        )
    content = await until_ended(rights, content)
    failure = failure_of(content)
    if failure is not None:
        return as_openai(failure, retries=False)
    return JSONResponse(await images_response(services, content, asked), headers=headers)


async def _files(form: FormData) -> tuple[bytes, bytes | None]:
    """The one picture, and the mask if there is one."""
    images = [
        value
        for name, value in form.multi_items()
        if _IMAGE.fullmatch(name) and isinstance(value, UploadFile)
    ]
    if len(images) != 1:
        raise InvalidRequest(
            f"image: must be one file; {len(images)} came", details={"field": "image"}
        )
    mask = form.get("mask")
    if mask is not None and not isinstance(mask, UploadFile):
        raise InvalidRequest("mask: must be a file", details={"field": "mask"})
    return await images[0].read(), None if mask is None else await mask.read()


def _fields(form: FormData) -> dict[str, Any]:
    """The form's texts as the fields of a JSON body."""
    found: dict[str, Any] = {}
    loras: list[dict[str, Any]] = []
    last = ""
    for name, value in form.multi_items():
        if not isinstance(value, str) or name == _STRENGTH:
            continue
        nested = _NESTED.fullmatch(name)
        if nested is not None:
            place, field = nested.groups()
            if not loras or place != last or field in loras[-1]:
                loras.append({})
            last = place
            loras[-1][field] = _number(name, value) if field == "scale" else value
        elif name != "loras" and _NAMED.fullmatch(name):
            loras.append({"name": value})
        elif name.startswith("loras["):
            raise InvalidRequest(
                f"{name[:60]}: must be loras[][name], loras[][scale] or loras, a list in JSON",
                details={"field": "loras"},
            )
        elif name in _NUMBERS:
            found[name] = _number(name, value)
        elif name == "stream":
            found[name] = value.lower() in ("true", "1")
        else:
            found[name] = value
    if loras:
        found["loras"] = loras
    return found


def _number(field: str, text: str) -> int | float:
    try:
        return int(text) if text.strip().lstrip("-").isdigit() else float(text)
    except ValueError:
        raise InvalidRequest(f"{field}: must be a number", details={"field": field}) from None
