"""Small copies of pictures, as lists and previews show them.

Must not know: where they lie.
"""

from __future__ import annotations

import io

from PIL import Image

THUMBNAIL_SIDE = 256  # px, the longer side
_QUALITY = 82


def shrink(picture: Image.Image) -> Image.Image | None:
    """A copy of at most 256 px a side, in RGB; None where `picture` is that small itself.

    Raises:
        OSError: its pixels cannot be read.
    """
    if max(picture.size) <= THUMBNAIL_SIDE:
        return None
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return small


def encode(small: Image.Image) -> bytes:
    """The file of a small copy, a WebP."""
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()


def make_thumbnail(picture: bytes) -> bytes | None:
    """The small copy's file for the file `picture`; None where that is small itself.

    Raises:
        OSError: the bytes are no picture.
    """
    with Image.open(io.BytesIO(picture)) as opened:
        small = shrink(opened)
    return None if small is None else encode(small)
