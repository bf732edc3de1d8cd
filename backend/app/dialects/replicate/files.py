"""`/files`: what is sent is a LoRA of the library, and its URL names it in an input."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile

from app.api.deps import CallerDep, RightsDep, ServicesDep
from app.core.errors import NotFound
from app.dialects.asking import own_base
from app.dialects.lora_refs import FILES_PATH
from app.models import LoraModel
from app.schemas.common import storable
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
    """Put a LoRA file into the library."""
    async with request.form(max_files=1, max_fields=_MAX_PARTS) as form:
        file = form.get("content")
        if not isinstance(file, UploadFile):
            raise InvalidRequest(
                "content: must be a file: a form's part with a file name",
                details={"field": "content"},
            )
        await rights.check()  # the file may have taken hours to come
        name = (file.filename or "").replace("\x00", "").removesuffix(".safetensors").strip()
        try:
            name = storable(name)[:150].strip() or "file"
        except ValueError:
            name = "file"
        uploaded = await services.loras.upload(
            caller.owner, file.file, name=name, description="", tags=[]
        )
    return _out(uploaded.lora, own_base(request, services.settings))


@router.get("/files")
async def list_files(request: Request, caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """The library's LoRAs, newest first."""
    base = own_base(request, services.settings)
    results = [_out(lora, base) for lora in await services.loras.list(caller.owner)]
    return {"results": results, "next": None, "previous": None}


@router.get("/files/{file_id}")
async def read_file(
    file_id: str, request: Request, caller: CallerDep, services: ServicesDep
) -> dict[str, Any]:
    """One."""
    lora = await _lora(services, caller.owner, file_id)
    return _out(lora, own_base(request, services.settings))


@router.delete("/files/{file_id}", status_code=204)
async def delete_file(file_id: str, caller: CallerDep, services: ServicesDep) -> None:
    """Remove one that no avatar and no waiting content uses."""
    lora = await _lora(services, caller.owner, file_id)
    await services.loras.delete(caller.owner, lora.id)
