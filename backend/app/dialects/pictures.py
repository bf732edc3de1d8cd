"""Pictures as dialects hand them out: in another file format, or as base64.

Each file that is made here is signed, as the one is that it was made of.
Must not know: contents, HTTP.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

from PIL import Image

from app.core.pools import Duty, in_pool

QUALITY_DEFAULT = 90
SMALL_SIDE, SMALL_QUALITY = 512, 80


# (a stored picture's file, another file of it) → that file with a manifest.
SignCopy = Callable[[bytes, bytes], bytes]


async def encoded(
    data: bytes, format_name: str, sign: SignCopy, quality: int | None = None
) -> bytes:
    """The picture `data` as png, jpeg or webp; `data` itself where it is that already.

    Args:
        quality: 0 to 100, of jpeg and webp.
    """
    if quality is None and _format_of(data) == format_name:
        return data
    if format_name == "png" and _format_of(data) == "png":
        return data
    return await in_pool(Duty.IMAGES, _encode, data, format_name, sign, quality)


def _encode(data: bytes, format_name: str, sign: SignCopy, quality: int | None) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        if format_name == "png":
            image.save(file, "PNG")
        else:
            image.convert("RGB").save(
                file, format_name.upper(), quality=QUALITY_DEFAULT if quality is None else quality
            )
    return sign(data, file.getvalue())


async def small_jpeg(data: bytes, sign: SignCopy) -> bytes:
    """The picture `data` as a JPEG of at most `SMALL_SIDE` px a side."""
    return await in_pool(Duty.IMAGES, _small, data, sign)


def _small(data: bytes, sign: SignCopy) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
        small.thumbnail((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS)
        small.save(file, "JPEG", quality=SMALL_QUALITY)
    return sign(data, file.getvalue())


def _format_of(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "png"
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    return "webp" if data[8:12] == b"WEBP" else ""


def as_base64(data: bytes) -> str:
    """`data` as base64 text."""
    return base64.b64encode(data).decode()
