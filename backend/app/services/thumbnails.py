"""Small copies of pictures, for lists.

Must not know: where they are stored.
"""

from __future__ import annotations

import io

from PIL import Image

THUMBNAIL_SIDE = 256  # px, the longer side
_QUALITY = 82


def make_thumbnail(picture: bytes) -> bytes | None:
    """`picture` as WebP of at most 256 px a side; None where it is that small itself.

    Raises:
        OSError: the bytes are no picture.
    """
    with Image.open(io.BytesIO(picture)) as opened:
        if max(opened.size) <= THUMBNAIL_SIDE:
            return None
        small = opened.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()
