"""From a stranger's file to pixels: bounded before anything is decoded, upright, in sRGB.

Duty: what a picture is, whatever its format, depth and colours; a clear refusal of all else.
Must not know: where the bytes came from, what is drawn.

The size is read from the header and held against the limits first, so that a small file cannot ask
for gigabytes. Only the first frame is ever decoded. A broken colour profile or EXIF block counts as
none: they say how pixels are to be seen, and the pixels are all there.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from sdxl_contract.errors import ImageLoadFailed
from sdxl_contract.limits import ModelLimits
from sdxl_contract.pictures import MaskChannel

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
_PROFILE_MAX_BYTES = 4 * 2**20
_WHITE = (255, 255, 255)
_SRGB = ImageCms.createProfile("sRGB")
# What lies between a 16-bit level and the 8-bit one that looks the same.
_LEVELS = 257


def decode_picture(data: bytes | bytearray, field: str, limits: ModelLimits) -> Image.Image:
    """The picture in `data`: RGB, or RGBA where the file knows transparency.

    Raises:
        ImageLoadFailed: it is none, or too large; names `field`.
    """
    # Pillow's plug-ins raise what they like on damaged files; all of it means the same.
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(field, None, limits) from None
    except MemoryError:
        raise
    except Exception:
        raise _failed(field, "is not a PNG, JPEG, WebP or AVIF picture", "format") from None
    with opened:
        width, height = opened.size
        if width * height > limits.image_max_pixels or max(width, height) > limits.image_max_side:
            raise _too_large(field, (width, height), limits)
        try:
            opened.load()
            picture = _eight_bits(opened)
        except MemoryError:
            raise
        except Exception:
            raise _failed(field, "is damaged or incomplete", "damaged") from None
        return _upright(_srgb(picture, opened.info.get("icc_profile")), opened)


def opaque(picture: Image.Image) -> Image.Image:
    """RGB of a decoded picture, what is transparent on white."""
    if picture.mode == "RGB":
        return picture
    ground = Image.new("RGB", picture.size, _WHITE)
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def as_mask(picture: Image.Image, channel: MaskChannel, *, invert: bool) -> Image.Image:
    """The mask (L, 255 is drawn anew) in a decoded picture."""
    if channel is MaskChannel.LUMINANCE:
        mask = opaque(picture).convert("L")
    elif picture.mode == "RGBA":
        mask = picture.getchannel("A")
    else:
        mask = Image.new("L", picture.size, 255)
    return ImageOps.invert(mask) if invert else mask


def _eight_bits(opened: Image.Image) -> Image.Image:
    """RGB or RGBA of whatever mode the file has, scaled where Pillow would clip."""
    if opened.mode.startswith("I"):
        # Unsigned: Pillow keeps the 16 bits of a grey PNG so, and would cut them at 255.
        levels: np.ndarray[Any, Any] = np.asarray(opened).astype(np.int64).clip(0, 65535)
        grey = ((levels + _LEVELS // 2) // _LEVELS).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if opened.has_transparency_data:
        return opened.convert("RGBA")
    if opened.mode == "CMYK" and opened.info.get("icc_profile"):
        return opened.copy()  # its profile knows better what the inks look like
    return opened.convert("RGB")


def _srgb(picture: Image.Image, profile: object) -> Image.Image:
    """`picture` in sRGB, as far as a usable profile says that it is in anything else."""
    rgb = picture.convert("RGB") if picture.mode == "RGBA" else picture
    if isinstance(profile, bytes) and 0 < len(profile) <= _PROFILE_MAX_BYTES:
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # Through its own profile an sRGB picture would lose its very bytes for nothing.
            if "srgb" not in ImageCms.getProfileDescription(own).lower():
                rgb = ImageCms.profileToProfile(rgb, own, _SRGB, outputMode="RGB") or rgb
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            rgb = rgb.convert("RGB")
    rgb = rgb.convert("RGB")
    if picture.mode == "RGBA":
        rgb.putalpha(picture.getchannel("A"))
    return rgb


def _upright(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """`picture` as its file says that it is to be held."""
    try:
        orientation = opened.getexif().get(0x0112)
    except Exception:
        return picture
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _too_large(field: str, size: tuple[int, int] | None, limits: ModelLimits) -> ImageLoadFailed:
    found = "has" if size is None else f"is {size[0]}x{size[1]} px:"
    return _failed(
        field,
        f"{found} too many pixels: at most {limits.image_max_pixels}, and "
        f"{limits.image_max_side} a side",
        "too_large",
        maximum=limits.image_max_pixels,
    )


def _failed(field: str, what: str, reason: str, **facts: int) -> ImageLoadFailed:
    return ImageLoadFailed(f"{field} {what}", details={"field": field, "reason": reason, **facts})
