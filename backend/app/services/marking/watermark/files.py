"""A watermark in a picture's file: the same format and texts, other pixels.

Duty: a file's bytes and a mark → the file with it. The bits are the first 32 of the SHA-256 of the
picture's pixels, so that the same request gives the same file again.
Must not know: contents, storage.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from app.services.marking.watermark.methods import Mark, method_named

_PNG = b"\x89PNG\r\n\x1a\n"
# What the pixels need; every other chunk of a PNG is kept as it was.
_OF_THE_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"})
_PNG_LEVEL = 3  # as small as the worker's within a few per cent, in a third of the default's time
_WEBP: dict[str, Any] = {"quality": 90, "method": 2}


class NoPicture(Exception):
    """The file cannot be opened."""


def write_mark(file: bytes, mark: Mark) -> tuple[bytes, Mark | None]:
    """`file` (PNG, JPEG or WebP) with `mark`, and what was written.

    A picture that is smaller than the method needs is given back as it is, with None.

    Raises:
        NoPicture: it cannot be opened.
    """
    method = method_named(mark.method)
    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG", "WEBP")) as opened:
            if min(opened.size) < method.smallest_side:
                return file, None
            pixels = np.asarray(opened.convert("RGB"))
            payload = _own_payload(pixels) if mark.payload is None else mark.payload
            marked = Image.fromarray(method.mark(pixels, payload))
            return _saved(marked, opened, file), Mark(mark.method, payload)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise NoPicture(type(error).__name__) from error


def _own_payload(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(struct.pack(">II", width, height))
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:4], "big")


def _saved(marked: Image.Image, source: Image.Image, file: bytes) -> bytes:
    """`marked` in the format of `source`, which was opened from `file`, with all that it says."""
    written = io.BytesIO()
    if source.format == "PNG":
        marked.save(written, "PNG", compress_level=_PNG_LEVEL)
        return _with_chunks(written.getvalue(), file)
    texts = ("exif", "xmp", "icc_profile")
    kept: dict[str, Any] = {name: source.info[name] for name in texts if name in source.info}
    if isinstance(source, JpegImagePlugin.JpegImageFile):
        kept["qtables"] = source.quantization
        kept["subsampling"] = JpegImagePlugin.get_sampling(source)
        marked.save(written, "JPEG", **kept)
    else:
        marked.save(written, "WEBP", **_WEBP, lossless=file[12:16] == b"VP8L", **kept)
    return written.getvalue()


def _with_chunks(written: bytes, source: bytes) -> bytes:
    """A PNG that Pillow wrote, with the other chunks of `source` between its head and pixels."""
    own = [chunk for kind, chunk in _chunks(written) if kind in _OF_THE_PIXELS]
    others = [chunk for kind, chunk in _chunks(source) if kind not in _OF_THE_PIXELS]
    return b"".join((_PNG, own[0], *others, *own[1:]))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG)
    while place + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, place)
        yield png[place + 4 : place + 8], png[place : place + 12 + size]
        place += 12 + size
