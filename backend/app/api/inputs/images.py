"""`/images`: pictures that contents are drawn from."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Response, UploadFile

from app.api.deps import OwnerDep, RightsDep, ServicesDep
from app.api.edge.upload_form import UploadRoute
from app.models import Image, InputImage
from app.schemas.common import Page
from app.schemas.inputs.pictures import InputImageOut

router = APIRouter(prefix="/images", tags=["images"], route_class=UploadRoute)


@router.post("", status_code=201, responses={200: {"model": InputImageOut}})
async def upload_image(
    file: UploadFile,
    owner: OwnerDep,
    services: ServicesDep,
    rights: RightsDep,
    response: Response,
) -> InputImageOut:
    """Put a picture there to draw from: 201, or 200 where these bytes are there.

    PNG, JPEG, WebP or AVIF, of at most 32 MiB, 25 million pixels and 8192 px a side. It is
    removed when no content was drawn from it for as long as contents are kept.
    """
    await rights.check()  # the file may have taken long to come
    uploaded = await services.inputs.upload(owner, await file.read())
    if not uploaded.is_new:
        response.status_code = 200
    return _out(services, uploaded.image)


@router.get("")
async def list_images(owner: OwnerDep, services: ServicesDep) -> Page[InputImageOut]:
    """The newest uploaded pictures, 200 at most."""
    rows = await services.inputs.list(owner)
    return Page(items=[_out(services, row) for row in rows])


@router.get("/{image_id:uuid}")
async def read_image(image_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> InputImageOut:
    """One picture to draw from: uploaded, or drawn here (by an image's id)."""
    return _out(services, await services.inputs.get(owner, image_id))


@router.delete("/{image_id:uuid}", status_code=204)
async def delete_image(image_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove an uploaded picture that no waiting content is drawn from."""
    await services.inputs.delete(owner, image_id)


def _out(services: ServicesDep, image: InputImage | Image) -> InputImageOut:
    file_sha256 = image.file_sha256 if isinstance(image, Image) else None
    return InputImageOut(
        id=image.id,
        sha256=file_sha256 or image.sha256,
        width=image.width,
        height=image.height,
        media_type=image.media_type,
        size_bytes=image.size_bytes,
        url=services.storage.image_url(image.object_key, services.settings.image_url_seconds),
        created_at=image.created_at,
    )
