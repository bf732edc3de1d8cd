"""Pictures that a call brings to be drawn from: put where the caller's other uploads are.

Must not know: in which field they stand, but for errors.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from app.api.deps import Caller, Services
from app.core.errors import TooLarge
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
