"""`/v1/images/edits`: a form with a picture, perhaps with a mask whose clear parts are redrawn."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from app.api.deps import CallerDep, RightsDep, ServicesDep
from app.dialects.asking import failure_of, fields_called, read_as, submit, until_ended
from app.dialects.from_pictures import can_be_clear, kept_picture
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
_FILE = re.compile(rf"mask|{_IMAGE.pattern}")
_KNOWN = frozenset({*ImagesIn.model_fields, _STRENGTH})
_TRUTH = {"true": True, "1": True, "false": False, "0": False, "": None}
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
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest(
            "request: must be a form with a file: multipart/form-data", details={"field": "request"}
        )
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS) as form:
        await rights.check()
        with fields_called(FIELDS):
            _check_parts(form)
            asked = read_as(ImagesIn, _fields(form))
            await check_model(services, asked.model)
            values = asked.as_asked().model_dump(exclude_unset=True, mode="json")
            image, mask = await _files(form)
            values["image"] = await kept_picture(services, caller, image, "image")
            if mask is not None:
                kept = await kept_picture(services, caller, mask, "mask")
                if not can_be_clear(mask):
                    raise InvalidRequest(
                        "mask: must be clear (alpha 0) where the picture is drawn anew: it has no "
                        "transparency",
                        details={"field": "mask"},
                    )
                values["mask"] = {**kept, "channel": "alpha", "invert": True}
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
    return await images[0].read(), await mask.read() if isinstance(mask, UploadFile) else None


def _check_parts(form: FormData) -> None:
    """Refuse what would be passed over: a second part of a name, a text for a file, or the other
    way round.

    Raises:
        InvalidRequest: names the field.
    """
    seen: set[str] = set()
    for name, value in form.multi_items():
        is_file, wants_file = isinstance(value, UploadFile), bool(_FILE.fullmatch(name))
        if wants_file != is_file and (wants_file or name in _KNOWN):
            raise InvalidRequest(
                f"{name}: must be a {'file' if wants_file else 'text'}", details={"field": name}
            )
        if name in seen and (name == "mask" or name in _KNOWN):
            raise InvalidRequest(f"{name}: came more than once", details={"field": name})
        seen.add(name)


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
            found[name] = _TRUTH.get(value.strip().lower(), value)
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
