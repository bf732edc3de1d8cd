"""What a stranger's picture is: its header within bounds, then whether all of it can be decoded.

Must not know: where it will lie. The worker reads it once more, by the same limits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from app.services.inputs.likeness import likeness_of, telling
from sdxl_contract.errors import ImageLoadFailed
from sdxl_contract.limits import IMAGE_MAX_PIXELS, IMAGE_MAX_SIDE

_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp",
          "AVIF": "image/avif"}  # fmt: skip
_ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/avif": "avif"}


class Look(NamedTuple):
    """What was seen of a picture's file."""

    sha256: str
    width: int
    height: int
    media_type: str
    likeness: int | None  # None: none that tells it apart

    @property
    def ending(self) -> str:
        """Of a file with it."""
        return _ENDINGS[self.media_type]


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture in `data`, decoded.

    Raises:
        ImageLoadFailed: no picture that can be drawn from.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "AVIF"))
    except Image.DecompressionBombError:
        raise _too_large(None) from None
    except MemoryError:
        raise
    except Exception:  # Pillow's plug-ins raise what they like on damaged files
        raise _failed("is not a PNG, JPEG, WebP or AVIF picture", "format") from None
    with picture:
        width, height = picture.size
        if width * height > IMAGE_MAX_PIXELS or max(width, height) > IMAGE_MAX_SIDE:
            raise _too_large((width, height))
        try:
            picture.load()
        except MemoryError:
            raise
        except Exception:  # Pillow's readers raise of every kind on what is broken
            raise _failed("is damaged or incomplete", "damaged") from None
        yield picture


def look_at(data: bytes) -> Look:
    """What `data` is.

    Raises:
        ImageLoadFailed: no picture that can be drawn from.
    """
    with opened(data) as picture:
        width, height = picture.size
        media_type = _TYPES[picture.format or "PNG"]
        near = None
        with contextlib.suppress(OSError, ValueError):  # of a mode that has no way to grey
            near = telling(likeness_of(as_seen(picture)))
    return Look(hashlib.sha256(data).hexdigest(), width, height, media_type, near)


def as_seen(picture: Image.Image) -> Image.Image:
    """A picture as people and models see it: upright, on white, with 8 bits.

    Raises:
        OSError, ValueError: of a mode that has no way there.
    """
    with contextlib.suppress(Exception):  # broken Exif; readers raise of every kind
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.float32) / 257
        return Image.fromarray(deep.clip(0, 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    seen = Image.new("RGBA", picture.size, "white")
    seen.alpha_composite(picture.convert("RGBA"))
    return seen


def _too_large(size: tuple[int, int] | None) -> ImageLoadFailed:
    found = "has" if size is None else f"is {size[0]}x{size[1]} px:"
    return _failed(
        f"{found} too many pixels: at most {IMAGE_MAX_PIXELS}, and {IMAGE_MAX_SIDE} a side",
        "too_large",
        maximum=IMAGE_MAX_PIXELS,
    )


def _failed(what: str, reason: str, **facts: int) -> ImageLoadFailed:
    return ImageLoadFailed(
        f"The file {what}.", details={"field": "file", "reason": reason, **facts}
    )
