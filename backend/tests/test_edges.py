"""The map of a picture's edges is the worker's own, of whatever kind the picture is."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from app.services.inputs.edges import edges_of
from sdxl_contract.drawing.controls import Canny
from sdxl_contract.drawing.edges import canny

WIDE = Image.new("L", (80, 40), 0)
WIDE.paste(200, (10, 5, 45, 30))


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def found(data: bytes, side: int = 40, **asked: int) -> Image.Image:
    return Image.open(io.BytesIO(edges_of(data, side, Canny(**asked))))


def test_a_map_at_the_picture_s_own_size_is_the_very_one_that_holds_a_drawing() -> None:
    picture = WIDE.convert("RGB")
    for low, high in ((100, 200), (0, 0), (300, 700)):
        ours = found(file_of(picture), low=low, high=high)
        assert ours.tobytes() == canny(picture, low, high).tobytes()
    assert found(file_of(picture), low=300, high=700).getbbox() is not None
    assert found(file_of(picture), low=1000, high=2000).getbbox() is None


def grey_of_16_bits() -> bytes:
    # Left as it is, all of it would be white.
    return file_of(WIDE.convert("I").point(lambda level: level * 257).convert("I;16"))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turned
    return file_of(WIDE.transpose(Image.Transpose.ROTATE_90).convert("RGB"), exif=exif)


def clear() -> bytes:
    """White where it is transparent: so the same edges, from the other side."""
    image = Image.new("RGBA", WIDE.size, (55, 55, 55, 255))
    image.paste((55, 55, 55, 0), (10, 5, 45, 30))
    return file_of(image)


@pytest.mark.parametrize(
    "data",
    [grey_of_16_bits(), turned(), clear(), file_of(WIDE.convert("P")), file_of(WIDE, "WEBP",
     lossless=True)],
    ids=["16 bits", "turned", "clear", "palette", "webp"],
)  # fmt: skip
def test_pictures_of_every_kind_are_seen_as_they_look(data: bytes) -> None:
    assert found(data).tobytes() == canny(WIDE, 100, 200).tobytes()


@pytest.mark.parametrize(
    ("size", "side", "wanted"),
    [((80, 40), 80, (160, 80)), ((300, 900), 64, (64, 192)), ((4000, 100), 2048, (8192, 205)),
     ((3000, 1), 64, (8192, 3))],
)  # fmt: skip
def test_a_map_s_size_is_bounded(size: tuple[int, int], side: int, wanted: tuple[int, int]) -> None:
    assert found(file_of(Image.new("RGB", size)), side).size == wanted
