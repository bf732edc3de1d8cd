"""A stranger's picture is decoded right, or refused by name before it costs anything."""

from __future__ import annotations

import functools
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdxl_contract.errors import ImageLoadFailed
from sdxl_contract.limits import ModelLimits
from sdxl_contract.pictures import MaskChannel
from sdxl_worker.pictures.decoding import as_mask, decode_picture, opaque

LIMITS = ModelLimits()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bits: int = 8, colour: int = 2, rows: bytes = b"", *more: bytes
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + body + chunk(b"IEND", b"")
    )


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    across = np.linspace(0, 255, size[0], dtype=np.uint8)
    grey = Image.fromarray(np.tile(across, (size[1], 1)))
    picture = Image.merge("RGB", (grey, grey.rotate(180), Image.new("L", size, 90)))
    return picture.convert(mode)


def see_through() -> Image.Image:
    picture = photo()
    picture.putalpha(photo("L"))
    return picture


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(photo(), "PNG", exif=exif)


def frames(kind: str, **options: Any) -> bytes:
    others = [Image.new("RGB", (24, 16), "red")] * 3
    return saved(photo(), kind, save_all=True, append_images=others, **options)


GREY_16 = np.full((4, 4), 40000, dtype=np.uint16)
P3 = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


# 8000 × 8000 black: a file of some kilobytes and 192 MB of pixels.
@functools.cache
def bomb() -> bytes:
    return png(8000, 8000, rows=b"\0" * (8000 * 24001))


EXIF_JUNK = b"Exif\0\0MM\0*\xff\xff\xff\xff"

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "format"),
    "text": (lambda: b"a picture of a cat", "format"),
    "zeros": (lambda: b"\0" * 4096, "format"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "format"),
    "HTML": (lambda: b"<!doctype html><img src=x onerror=alert(1)>", "format"),
    "PDF": (lambda: b"%PDF-1.7\n1 0 obj\n", "format"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format"),
    "GIF": (lambda: saved(photo("P"), "GIF"), "format"),
    "BMP": (lambda: saved(photo(), "BMP"), "format"),
    "TIFF": (lambda: saved(photo(), "TIFF"), "format"),
    "ICO": (lambda: saved(photo(), "ICO"), "format"),
    "PPM": (lambda: saved(photo(), "PPM"), "format"),
    "JPEG 2000": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 64, "format"),
    "a ZIP": (lambda: b"PK\x03\x04" + b"\0" * 64, "format"),
    "a pickle": (lambda: b"\x80\x04\x95\x10\0\0\0", "format"),
    "a bomb": (bomb, "too_large"),
    "a header of 2 billion px a side": (lambda: png(2**31 - 1, 2**31 - 1), "too_large"),
    "one row of 20,000 px": (lambda: png(20_000, 1, rows=b"\0" * 60_001), "too_large"),
    "one column of 20,000 px": (lambda: png(1, 20_000, rows=b"\0" * 80_000), "too_large"),
    "26 million px": (lambda: png(5200, 5000), "too_large"),
    "a wide WebP header": (
        lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\0\0\0\0",
        "",
    ),
    "a JPEG header of 65,500 px": (
        lambda: b"\xff\xd8\xff\xc0\0\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\0\x02\x11\x01\x03\x11\x01",
        "too_large",
    ),
    "a size of nothing": (lambda: png(0, 0), ""),
    "a PNG cut in half": (lambda: saved(photo(size=(600, 600)), "PNG")[:1000], "damaged"),
    "a JPEG cut in half": (lambda: saved(photo(size=(200, 200)), "JPEG")[:1500], "damaged"),
    "a WebP cut in half": (lambda: saved(photo(size=(200, 200)), "WEBP")[:300], ""),
    "an AVIF cut in half": (lambda: saved(photo(size=(200, 200)), "AVIF")[:500], ""),
    "only a PNG's signature": (lambda: b"\x89PNG\r\n\x1a\n", "format"),
    "only a JPEG's beginning": (lambda: b"\xff\xd8\xff\xe0", "format"),
    "a wrong checksum": (lambda: saved(photo(), "PNG").replace(b"IDAT", b"IDAT\0", 1), "damaged"),
    "no pixels at all": (
        lambda: b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b""),
        "damaged",
    ),
    "a palette that is missing": (lambda: png(4, 4, 8, 3, b"\0" * 20), ""),
    "a depth that does not exist": (lambda: png(4, 4, 7, 2, b"\0" * 52), ""),
    "a text bomb": (
        lambda: png(4, 4, 8, 2, b"\0" * 52, *[
            chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 60_000_000)) for _ in range(2)
        ]),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_picture_is_refused_by_field_and_reason(what: str) -> None:
    make, reason = REFUSED[what]
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(ImageLoadFailed, match=r"^mask ") as refused:
            decode_picture(data, "mask", LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    details = refused.value.details or {}
    assert details["field"] == "mask"
    assert details["reason"] in ("format", "damaged", "too_large")
    assert not reason or details["reason"] == reason
    assert peak < 80 * 2**20


TAKEN: dict[str, tuple[Callable[[], bytes], tuple[int, int], str]] = {
    "PNG": (lambda: saved(photo(), "PNG"), (24, 16), "RGB"),
    "JPEG": (lambda: saved(photo(), "JPEG"), (24, 16), "RGB"),
    "WebP": (lambda: saved(photo(), "WEBP"), (24, 16), "RGB"),
    "AVIF": (lambda: saved(photo(), "AVIF"), (24, 16), "RGB"),
    "grey": (lambda: saved(photo("L"), "PNG"), (24, 16), "RGB"),
    "one bit": (lambda: saved(photo("1"), "PNG"), (24, 16), "RGB"),
    "a palette": (lambda: saved(photo("P"), "PNG"), (24, 16), "RGB"),
    "a palette with transparency": (
        lambda: saved(photo("P"), "PNG", transparency=0), (24, 16), "RGBA"
    ),
    "a transparent colour": (
        lambda: saved(photo(), "PNG", transparency=(0, 0, 0)), (24, 16), "RGBA"
    ),
    "too few rows, the others black": (lambda: png(4, 4, rows=b"\0" * 26), (4, 4), "RGB"),
    "grey with alpha": (lambda: saved(photo("LA"), "PNG"), (24, 16), "RGBA"),
    "alpha": (lambda: saved(see_through(), "WEBP"), (24, 16), "RGBA"),
    "16-bit grey": (lambda: saved(Image.fromarray(GREY_16), "PNG"), (4, 4), "RGB"),
    "CMYK": (lambda: saved(photo("CMYK"), "JPEG"), (24, 16), "RGB"),
    "YCCK with a broken profile": (
        lambda: saved(photo("CMYK"), "JPEG", icc_profile=b"\0" * 200), (24, 16), "RGB"
    ),
    "a broken profile": (
        lambda: saved(photo(), "PNG", icc_profile=b"nonsense"), (24, 16), "RGB"
    ),
    "a profile of other colours": (lambda: saved(photo(), "PNG", icc_profile=P3), (24, 16), "RGB"),
    "broken EXIF": (lambda: saved(photo(), "JPEG", exif=EXIF_JUNK), (24, 16), "RGB"),
    "progressive": (lambda: saved(photo(), "JPEG", progressive=True), (24, 16), "RGB"),
    "an animated WebP": (lambda: frames("WEBP", lossless=True), (24, 16), "RGB"),
    "an animated PNG": (lambda: frames("PNG"), (24, 16), "RGB"),
    "an MPO, as phones write it": (lambda: frames("MPO"), (24, 16), "RGB"),
    "one pixel": (lambda: saved(photo(size=(1, 1)), "PNG"), (1, 1), "RGB"),
    "something behind its end": (lambda: saved(photo(), "PNG") + b"\0" * 9999, (24, 16), "RGB"),
    "lying on its side": (lambda: rotated(6), (16, 24), "RGB"),
    "an orientation that does not exist": (lambda: rotated(77), (24, 16), "RGB"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_every_kind_of_picture_comes_out_in_eight_bits(what: str) -> None:
    make, size, mode = TAKEN[what]
    found = decode_picture(make(), "image", LIMITS)
    assert (found.size, found.mode) == (size, mode)


def test_the_corpus_is_large_enough() -> None:
    assert len(REFUSED) + len(TAKEN) >= 40


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    found = decode_picture(saved(Image.fromarray(GREY_16), "PNG"), "image", LIMITS)
    assert found.getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "MPO"])
def test_the_first_frame_counts(kind: str) -> None:
    data = frames(kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = np.asarray(decode_picture(data, "image", LIMITS)).astype(int)
    assert np.abs(found - np.asarray(photo()).astype(int)).mean() < 12


def test_an_orientation_is_followed() -> None:
    for orientation, turn in {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.items():  # fmt: skip
        found = decode_picture(rotated(orientation), "image", LIMITS)
        assert found.tobytes() == photo().transpose(turn).tobytes(), orientation


def test_an_srgb_picture_keeps_its_very_bytes() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(photo(), "PNG", icc_profile=profile)
    assert decode_picture(data, "image", LIMITS).tobytes() == photo().tobytes()


def test_what_is_transparent_is_white_in_a_source_and_may_be_the_mask() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    found = decode_picture(saved(clear, "PNG"), "image", LIMITS)
    assert list(opaque(found).get_flattened_data()) == [(255, 255, 255), (255, 0, 0)]
    for invert, expected in ((False, [0, 255]), (True, [255, 0])):
        mask = as_mask(found, MaskChannel.ALPHA, invert=invert)
        assert list(mask.get_flattened_data()) == expected
    grey = decode_picture(saved(photo("L"), "PNG"), "mask", LIMITS)
    assert as_mask(grey, MaskChannel.LUMINANCE, invert=False).tobytes() == photo("L").tobytes()
    assert as_mask(grey, MaskChannel.ALPHA, invert=False).getextrema() == (255, 255)


def test_the_limits_are_the_model_s() -> None:
    data = saved(photo(), "PNG")
    narrow = ModelLimits(image_max_pixels=24 * 16 - 1)
    with pytest.raises(ImageLoadFailed, match="24x16 px: too many pixels: at most 383"):
        decode_picture(data, "image", narrow)
    assert decode_picture(data, "image", ModelLimits(image_max_pixels=24 * 16)).size == (24, 16)
