"""A map of a picture's edges before anything is drawn, for clients that show it first.

Must not know: HTTP, contents.
"""

from __future__ import annotations

import io

from PIL import Image

from app.services.inputs.reading import as_seen
from sdxl_contract.drawing.controls import Canny
from sdxl_contract.drawing.edges import canny
from sdxl_contract.limits import IMAGE_MAX_SIDE

# Of a map: what a thread and its memory bear.
_PIXELS_MAX = 1 << 21


def edges_of(data: bytes, side: int, asked: Canny) -> bytes:
    """A PNG of the edges that the worker finds in the picture at that size.

    Args:
        data: a picture that `reading.look_at` has seen.
        side: px of the map's shorter side, less where the map would be too large.
    """
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "AVIF")) as opened:
        picture = as_seen(opened).convert("RGB")
    width, height = picture.size
    times = min(
        side / min(width, height),
        (_PIXELS_MAX / (width * height)) ** 0.5,
        IMAGE_MAX_SIDE / max(width, height),
    )
    size = (max(1, round(width * times)), max(1, round(height * times)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    canny(picture, asked.low, asked.high).save(file, "PNG")
    return file.getvalue()
