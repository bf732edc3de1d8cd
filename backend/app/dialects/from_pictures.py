"""Pictures that a call brings to be drawn from: put where the caller's other uploads are.

Must not know: in which field they stand, but for errors.
"""

from __future__ import annotations

import base64
import binascii
import io
import uuid
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from fastapi import Request
from PIL import Image

from app.api.deps import Caller, Services
from app.core.errors import NotFound, TooLarge
from app.dialects.asking import own_base, read_as
from app.dialects.lora_refs import FILES_PATH as SENT_FILES_PATH
from app.dialects.lora_refs import stored_file
from app.schemas.content import GenerateIn
from app.services.storage import FILES_PATH, LocalStorage
from sdxl_contract.errors import ImageLoadFailed, InvalidRequest


def picture_of(text: object, field: str) -> bytes:
    """The bytes of a picture in base64, bare or as a data URI.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        encoded = text.rpartition("base64,")[2] if isinstance(text, str) else ""
        data = base64.b64decode(encoded, validate=False)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise InvalidRequest(f"{field}: must be a picture in base64", details={"field": field})
    return data


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a picture of a kind that can be drawn from."""
    return (
        head.startswith((b"\x89PNG", b"\xff\xd8"))
        or head[8:12] == b"WEBP"
        or head[4:12] in (b"ftypavif", b"ftypavis")
    )


def can_be_clear(picture: bytes) -> bool:
    """Whether a picture that was kept can be clear anywhere; read from its header."""
    with Image.open(io.BytesIO(picture)) as opened:
        return bool(opened.has_transparency_data)


async def kept_picture(
    services: Services, caller: Caller, data: bytes, field: str
) -> dict[str, Any]:
    """A picture as a request names it, once it is kept.

    Raises:
        ImageLoadFailed: it is none that can be drawn from.
        TooLarge, StorageFailed: it cannot be kept.
    """
    try:
        uploaded = await services.inputs.upload(caller.owner, data)
    except ImageLoadFailed as error:
        error.details = {**(error.details or {}), "field": field}
        raise
    except TooLarge as error:
        error.field = field
        raise
    return {"image_id": str(uploaded.image.id)}


class PictureWish(NamedTuple):
    """What a call says of the picture that it starts from: each a URL or a data URI.

    Args:
        strength: 0 to 1; of a mask white is drawn anew.
    """

    image: str | None
    mask: str | None
    strength: float
    image_field: str
    mask_field: str


async def with_pictures(
    request: Request, services: Services, caller: Caller, asked: GenerateIn, wish: PictureWish
) -> GenerateIn:
    """`asked`, drawn over the picture that is wished for, if there is one.

    Raises:
        InvalidRequest, NotFound, ImageDownloadFailed, ImageLoadFailed, TooLarge, RateLimited:
            a picture cannot be had.
    """
    if not wish.image:
        if wish.mask:
            field = wish.image_field
            raise InvalidRequest(f"{field}: a mask needs a picture", details={"field": field})
        return asked
    values = asked.model_dump(exclude_unset=True, mode="json")
    values["image"] = await _found(request, services, caller, wish.image, wish.image_field)
    values["strength"] = wish.strength
    if wish.mask:
        values["mask"] = await _found(request, services, caller, wish.mask, wish.mask_field)
    return read_as(GenerateIn, values)


async def _found(
    request: Request, services: Services, caller: Caller, text: str, field: str
) -> dict[str, Any]:
    """The picture that `text` names, as a request names it."""
    text = text.strip()
    if text.startswith("data:"):
        return await kept_picture(services, caller, picture_of(text, field), field)
    if (stored := stored_file(request, services, text)) is not None:
        sent_file = await services.sent_files.get(caller.owner, stored, field)
        if sent_file.input_image_id is None:
            raise InvalidRequest(f"{field}: this file is a LoRA", details={"field": field})
        return {"image_id": str(sent_file.input_image_id)}
    for base in {own_base(request, services.settings), services.settings.base_url}:
        if text.startswith(base + SENT_FILES_PATH):
            try:
                sent = uuid.UUID(text.removeprefix(base + SENT_FILES_PATH))
            except ValueError:
                raise NotFound("There is no file with this id.", field=field) from None
            return {"image_id": str(sent)}
        if text.startswith(base + FILES_PATH):
            data = await _own_file(services, text, field)
            return await kept_picture(services, caller, data, field)
    data = await services.picture_urls.bytes_at(caller.owner, text, field)
    return await kept_picture(services, caller, data, field)


_ENDINGS = (".png", ".jpg", ".webp", ".avif")


async def _own_file(services: Services, url: str, field: str) -> bytes:
    """A picture of this server's own storage: whoever has its signed URL may have it."""
    parts = urlsplit(url)
    key = unquote(parts.path.removeprefix(FILES_PATH))
    query = parse_qs(parts.query)
    expires, signature = (query.get(name, [""])[0] for name in ("expires", "signature"))
    storage = services.storage
    if (
        not isinstance(storage, LocalStorage)
        or not key.endswith(_ENDINGS)
        or not storage.verify("GET", key, expires, signature)
    ):
        raise InvalidRequest(
            f"{field}: this URL has expired or was changed: ask for the picture again",
            details={"field": field},
        )
    return await storage.get(key)
