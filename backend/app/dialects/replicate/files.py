"""`/files`: what is sent is a LoRA of the library or a picture; its URL names it in an input."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile

from app.api.deps import CallerDep, RightsDep, ServicesDep
from app.core.errors import NotFound
from app.dialects.asking import own_base
from app.dialects.from_pictures import is_picture, kept_picture
from app.dialects.lora_refs import FILES_PATH, name_of_file
from app.models import InputImage, LoraModel
from sdxl_contract.errors import InvalidRequest

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["content"],
                    "properties": {"content": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_MAX_PARTS = 8
_MAX_FILES = 2  # the JavaScript client sends its metadata as one, too
router = APIRouter()


def _out(lora: LoraModel, base: str) -> dict[str, Any]:
    return {
        "id": str(lora.id),
        "name": f"{lora.name}.safetensors",
        "content_type": "application/octet-stream",
        "size": lora.size_bytes,
        "etag": lora.sha256,
        "checksums": {"sha256": lora.sha256},
        "metadata": {},
        "created_at": lora.created_at.isoformat(),
        "expires_at": None,
        "urls": {"get": f"{base}{FILES_PATH}{lora.id}"},
    }


def _picture_out(image: InputImage, base: str) -> dict[str, Any]:
    return {
        "id": str(image.id),
        "name": image.object_key.rpartition("/")[2],
        "content_type": image.media_type,
        "size": image.size_bytes,
        "etag": image.sha256,
        "checksums": {"sha256": image.sha256},
        "metadata": {},
        "created_at": image.created_at.isoformat(),
        "expires_at": None,
        "urls": {"get": f"{base}{FILES_PATH}{image.id}"},
    }


async def _picture(services: ServicesDep, owner: str, file_id: str) -> InputImage | None:
    with contextlib.suppress(ValueError, NotFound):
        found = await services.inputs.get(owner, uuid.UUID(file_id))
        return found if isinstance(found, InputImage) else None  # what was drawn was not sent
    return None


async def _lora(services: ServicesDep, owner: str, file_id: str) -> LoraModel:
    try:
        wanted = uuid.UUID(file_id)
    except ValueError:
        raise NotFound("There is no file with this id.") from None
    return await services.loras.get(owner, wanted)


@router.post("/files", status_code=201, openapi_extra=_FORM)
async def send_file(
    request: Request, caller: CallerDep, services: ServicesDep, rights: RightsDep
) -> dict[str, Any]:
    """Put a LoRA into the library, or a picture to where the caller's uploads are."""
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_PARTS) as form:
        file = form.get("content")
        if not isinstance(file, UploadFile):
            raise InvalidRequest(
                "content: must be a file: a form's part with a file name",
                details={"field": "content"},
            )
        await rights.check()  # the file may have taken hours to come
        base = own_base(request, services.settings)
        head = await file.read(12)
        await file.seek(0)
        if is_picture(head):
            uses = await kept_picture(services, caller, await file.read(), "content")
            image = await _picture(services, caller.owner, uses["image_id"])
            if image is None:
                raise NotFound("The picture was removed meanwhile.")
            return _picture_out(image, base)
        uploaded = await services.loras.upload(
            caller.owner, file.file, name=name_of_file(file.filename), description="", tags=[]
        )
    return _out(uploaded.lora, base)


@router.get("/files")
async def list_files(request: Request, caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """The library's LoRAs and the newest pictures, newest first."""
    base = own_base(request, services.settings)
    results = [_out(lora, base) for lora in await services.loras.list(caller.owner)]
    results += [_picture_out(image, base) for image in await services.inputs.list(caller.owner)]
    results.sort(key=lambda file: str(file["created_at"]), reverse=True)
    return {"results": results, "next": None, "previous": None}


@router.get("/files/{file_id}")
async def read_file(
    file_id: str, request: Request, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """One."""
    picture = await _picture(services, caller.owner, file_id)
    if picture is not None:
        return _picture_out(picture, own_base(request, services.settings))
    lora = await _lora(services, caller.owner, file_id)
    return _out(lora, own_base(request, services.settings))


@router.delete("/files/{file_id}", status_code=204)
async def delete_file(file_id: str, caller: CallerDep, services: ServicesDep) -> None:
    """Remove one that no avatar and no waiting content uses."""
    picture = await _picture(services, caller.owner, file_id)
    if picture is not None:
        await services.inputs.delete(caller.owner, picture.id)
        return
    lora = await _lora(services, caller.owner, file_id)
    await services.loras.delete(caller.owner, lora.id)
