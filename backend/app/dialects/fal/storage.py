"""fal's storage: a file is named first, then sent to a URL that needs no key.

What comes is a picture, kept where those of other calls are, or a LoRA of the library.
"""

from __future__ import annotations

import tempfile
import uuid
from typing import IO, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from app.api.deps import Caller, CallerDep, Services, ServicesDep
from app.core.errors import TooLarge
from app.core.pools import Duty, in_pool
from app.dialects.asking import own_base, read_as, read_json
from app.dialects.fal.shown import API
from app.dialects.from_pictures import is_picture, kept_picture
from app.dialects.lora_refs import STORED_PATH, name_of_file
from app.dialects.subapp import json_body
from app.models import SentFile
from app.schemas.common import Storable
from sdxl_contract.limits import IMAGE_MAX_BYTES

PATH = f"{API}/storage"
_IN_MEMORY_BYTES = 1 << 20
_HEAD_BYTES = 12
_FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
router = APIRouter()


class UploadIn(BaseModel):
    """A file that is about to come. What it is shows when it is here."""

    model_config = ConfigDict(extra="ignore")

    file_name: Storable | None = None
    content_type: Storable | None = None


@router.post("/rest/storage/upload/initiate", openapi_extra=json_body(UploadIn))
async def initiate(request: Request, caller: CallerDep, services: ServicesDep) -> dict[str, str]:
    """Where to send a file, and its URL once it is there."""
    asked = read_as(UploadIn, await read_json(request))
    file, token = await services.sent_files.begin(
        caller.owner, caller.key_id, name_of_file(asked.file_name)
    )
    base = own_base(request, services.settings)
    return {
        "upload_url": f"{base}{PATH}?file={file.id}&token={token}",
        "file_url": f"{base}{STORED_PATH}{file.id}",
    }


@router.post("/rest/storage/upload/initiate-multipart", openapi_extra=json_body(UploadIn))
async def initiate_multipart(caller: CallerDep) -> None:
    """What the client does with files over 90 MB: they go to the library by themselves."""
    raise TooLarge(
        "Files over 90 MB are not taken here: send a LoRA to POST /api/v1/loras/models/upload, and "
        "name it in loras[].path.",
        field="file",
    )


@router.put("/storage", openapi_extra=_FILE)
async def receive(
    request: Request, services: ServicesDep, file: str = "", token: str = ""
) -> dict[str, Any]:
    """Take a file in; sent again it is the one that is there."""
    sent = await services.sent_files.expected(file, token)
    if not sent.is_here:
        with (
            services.sent_files.place(sent.owner),
            tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as body,
        ):
            await _read(request, body)
            await services.sent_files.expected(file, token)  # it may have taken hours to come
            await _keep(services, sent, body)
    return {}


async def _read(request: Request, body: IO[bytes]) -> None:
    head, received = b"", 0
    async for chunk in request.stream():
        received += len(chunk)
        head = head if len(head) >= _HEAD_BYTES else head + chunk[:_HEAD_BYTES]
        if received > IMAGE_MAX_BYTES and is_picture(head):
            raise TooLarge(
                f"A picture may have at most {IMAGE_MAX_BYTES} bytes.",
                field="file",
                details={"maximum": IMAGE_MAX_BYTES},
            )
        await in_pool(Duty.UPLOADS, body.write, chunk)
    body.seek(0)


async def _keep(services: Services, sent: SentFile, body: IO[bytes]) -> None:
    head = body.read(_HEAD_BYTES)
    body.seek(0)
    if is_picture(head):
        caller = Caller(sent.owner, sent.key_id)
        kept = await kept_picture(services, caller, body.read(), "file")
        await services.sent_files.came(sent, image_id=uuid.UUID(kept["image_id"]))
        return
    uploaded = await services.loras.upload(
        sent.owner, body, name=sent.name, description="", tags=[]
    )
    await services.sent_files.came(sent, lora_id=uploaded.lora.id)
