"""The PNG writer: lossless on any picture, readable by others, small on photos."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sdxl_worker.answering import png
from sdxl_worker.answering.png import _repeats, encode_png
from testkit.worker import photo_like

TEXTS = {"parameters": "a red apple\nSteps: 2"}


def pillow_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
)
def test_any_picture_and_text_come_back(pixels: np.ndarray, text: str) -> None:
    with Image.open(io.BytesIO(encode_png(Image.fromarray(pixels), {"parameters": text}))) as read:
        read.load()
        assert np.array_equal(np.asarray(read), pixels)
        assert read.info["parameters"] == text


def test_a_photo_is_no_larger_than_pillow_s_default_and_comes_back() -> None:
    image = photo_like(512)
    data = encode_png(image, TEXTS)

    assert len(data) <= 1.2 * len(pillow_png(image))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(image))
    assert encode_png(image, TEXTS) == data


@pytest.mark.parametrize("side", [64, 700, 1500])
def test_parts_that_are_coded_side_by_side_are_one_stream(
    monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """By any number of threads the same bytes, and no larger than in one go."""
    image = photo_like(side)
    expected = encode_png(image, TEXTS)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(expected))), np.asarray(image))
    with ThreadPoolExecutor(1) as alone:
        monkeypatch.setattr(png, "_THREADS", alone)
        assert encode_png(image, TEXTS) == expected
    monkeypatch.setattr(png, "_STRIP_BYTES", 1 << 40)
    whole = encode_png(image, TEXTS)
    assert (whole == expected) is (side == 64)
    assert len(expected) < len(whole) + 1000


@pytest.mark.parametrize("kind", ["one colour", "gradient"])
def test_a_picture_that_repeats_itself_stays_small(kind: str) -> None:
    rows, columns = np.mgrid[0:512, 0:512]
    pixels = np.full((512, 512, 3), 200, np.uint8)
    if kind == "gradient":
        pixels = np.stack([rows // 2, columns // 2, (rows + columns) // 4], -1).astype(np.uint8)
    image = Image.fromarray(pixels)

    assert len(encode_png(image, {})) <= 1.2 * len(pillow_png(image)) + 200


def test_which_way_a_picture_goes_depends_on_what_it_repeats() -> None:
    """The control of the two tests above: both ways are taken."""
    patch = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert _repeats(np.tile(patch, (16, 16, 1)))
    assert not _repeats(np.asarray(photo_like(256)))


def test_every_chunk_of_the_file_has_its_checksum() -> None:
    data = encode_png(photo_like(64), TEXTS | {"other": "日本"})
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, kinds = 8, []
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        assert zlib.crc32(kind + body) == checksum
        kinds.append(kind)
        place += length + 12
    assert kinds == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]
