"""`/loras/models`: the LoRA library."""

from __future__ import annotations

import json
import uuid
from typing import Annotated

from fastapi import APIRouter, Form, Response, UploadFile

from app.api.content_out import lora_out
from app.api.deps import OwnerDep, RightsDep, ServicesDep
from app.api.edge.upload_form import UploadRoute
from app.models import LoraModel
from app.schemas.common import Description, Name, Page, Storable, storable
from app.schemas.loras import LoraOut, LoraPatch
from sdxl_contract.errors import InvalidRequest

router = APIRouter(prefix="/loras/models", tags=["loras"], route_class=UploadRoute)

_MAX_TAGS = 50
_MAX_TAG_CHARS = 50


def read_tags(values: list[str]) -> list[str]:
    """Tags of a form: a field repeated, one JSON list, or words between commas."""
    if len(values) == 1 and values[0].lstrip().startswith("["):
        try:
            values = json.loads(values[0])
        except (ValueError, RecursionError):
            raise _wrong_tags("must be a JSON list of texts, or words between commas") from None
    elif len(values) == 1:
        values = values[0].split(",")
    if not all(isinstance(tag, str) for tag in values):
        raise _wrong_tags("must be a list of texts")
    try:
        tags = list(dict.fromkeys(storable(tag).strip() for tag in values if tag.strip()))
    except ValueError as error:  # JSON can spell what a form's text cannot hold
        raise _wrong_tags(str(error)) from None
    if len(tags) > _MAX_TAGS or any(len(tag) > _MAX_TAG_CHARS for tag in tags):
        raise _wrong_tags(f"at most {_MAX_TAGS} of at most {_MAX_TAG_CHARS} characters")
    return tags


def _wrong_tags(what: str) -> InvalidRequest:
    return InvalidRequest(f"tags: {what}", details={"field": "tags"})


@router.post("/upload", status_code=201, responses={200: {"model": LoraOut}})
async def upload_lora(
    file: UploadFile,
    name: Annotated[Name, Form()],
    owner: OwnerDep,
    services: ServicesDep,
    rights: RightsDep,
    response: Response,
    description: Annotated[Description, Form()] = "",
    tags: Annotated[list[Storable] | None, Form()] = None,
) -> LoraOut:
    """Put a `.safetensors` file into the library: 201, or 200 where these bytes are there."""
    await rights.check()  # the file may have taken hours to come
    uploaded = await services.loras.upload(
        owner, file.file, name=name, description=description, tags=read_tags(tags or [])
    )
    if not uploaded.is_new:
        response.status_code = 200
    return _out(services, uploaded.lora)


@router.get("")
async def list_loras(owner: OwnerDep, services: ServicesDep) -> Page[LoraOut]:
    """All LoRAs, newest first."""
    rows = await services.loras.list(owner)
    return Page(items=[_out(services, row) for row in rows])


@router.get("/{lora_id:uuid}")
async def read_lora(lora_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> LoraOut:
    """One LoRA."""
    return _out(services, await services.loras.get(owner, lora_id))


@router.patch("/{lora_id:uuid}")
async def change_lora(
    lora_id: uuid.UUID, asked: LoraPatch, owner: OwnerDep, services: ServicesDep
) -> LoraOut:
    """Change what a person says of a LoRA; what the file is stays as it was read."""
    return _out(services, await services.loras.change(owner, lora_id, asked))


@router.delete("/{lora_id:uuid}", status_code=204)
async def delete_lora(lora_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a LoRA that no avatar and no waiting content uses."""
    await services.loras.delete(owner, lora_id)


def _out(services: ServicesDep, lora: LoraModel) -> LoraOut:
    return lora_out(lora, services.storage, services.settings.image_url_seconds)
