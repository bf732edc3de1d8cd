"""Bits in the pixels outlive what people do to pictures, and are found nowhere else."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.services.marking.watermark import spread
from app.services.marking.watermark.coding import CODED_BITS, decode, encode
from app.services.marking.watermark.files import NoPicture, write_mark
from app.services.marking.watermark.methods import Mark, find_mark
from benchmarks.bench_watermark import ATTACKS, Pixels, demo_pictures, photograph, unmarked

pytestmark = pytest.mark.process


PAYLOAD = 0xC0FFEE42


def slope(side: int) -> Pixels:
    """A smooth picture that every computer makes alike."""
    ramp = (np.arange(side) * 255 // side).astype(np.uint8)
    return np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), ramp[None] // 2
                     + ramp[:, None] // 2], axis=2)  # fmt: skip


def psnr(one: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_the_code_bears_a_fifth_of_its_signs_wrong_and_knows_when_it_bears_no_more() -> None:
    draw = np.random.default_rng(1)
    for payload in (0, PAYLOAD, 2**32 - 1):
        signs = encode(payload)
        assert decode(signs) == payload
        wrong = signs.copy()
        wrong[draw.permutation(CODED_BITS)[: CODED_BITS // 8]] *= -1
        assert decode(wrong) == payload
    assert [decode(draw.normal(size=CODED_BITS)) for _ in range(50)] == [None] * 50


@pytest.mark.parametrize("attack", ["jpeg_75", "half_size", "crop_10"])
def test_it_is_read_after_each_attack_in_the_demos_pictures(attack: str) -> None:
    pictures = demo_pictures()[::6]
    found = 0
    for number, picture in enumerate(pictures):
        marked = spread.mark(picture, PAYLOAD + number)
        assert psnr(picture, marked) >= 38
        reading = spread.read(ATTACKS[attack](marked))
        found += reading is not None and reading.payload == PAYLOAD + number
    assert found >= 0.95 * len(pictures)


def test_a_photograph_bears_all_attacks_at_once_and_is_marked_less() -> None:
    picture = photograph(1, 512)

    marked = spread.mark(picture, PAYLOAD)

    assert psnr(picture, marked) >= 41
    for attack in ("all_three", "quarter_size", "three_quarters"):
        reading = spread.read(ATTACKS[attack](marked))
        assert reading is not None, attack
        assert reading.payload == PAYLOAD


def test_nothing_is_found_where_nothing_is_also_not_with_one_check_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures = [unmarked(number) for number in range(12)] + [np.full((300, 200, 3), 255, np.uint8)]

    assert [spread.read(picture) for picture in pictures] == [None] * 13

    # The checksum is not the only guard: without it some are read, if chance may agree as well.
    monkeypatch.setattr("app.services.marking.watermark.coding._crc", lambda _: 0)
    monkeypatch.setattr(spread, "decode", lambda soft: PAYLOAD)
    assert [spread.read(picture) for picture in pictures] == [None] * 13
    monkeypatch.setattr(spread, "_MIN_AGREEMENT", -1.0)
    monkeypatch.setattr(spread, "_MIN_PEAK", 0.0)
    assert any(spread.read(picture) for picture in pictures)


def test_what_its_name_writes_never_changes() -> None:
    """A replay compares every pixel: another pattern needs another name."""
    written = [spread.mark(slope(side), PAYLOAD).tobytes() for side in (128, 300)]

    assert [hashlib.sha256(pixels).hexdigest()[:16] for pixels in written] == [
        "66b77615cd835f0b",
        "a3c176143b8cc31e",
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_keeps_its_format_and_what_it_says(kind: str) -> None:
    file = io.BytesIO()
    text = PngInfo()
    text.add_itxt("parameters", "an apple — Steps: 3")
    exif = Image.Exif()
    exif[0x010E] = "an apple"
    more = {"pnginfo": text} if kind == "PNG" else {"exif": exif, "quality": 92}
    Image.fromarray(slope(160)).save(file, kind, **more)

    marked, mark = write_mark(file.getvalue(), Mark("spread-1", None))
    same, fixed = write_mark(file.getvalue(), Mark("spread-1", PAYLOAD))

    assert mark is not None
    assert mark.payload not in (None, PAYLOAD)
    assert write_mark(file.getvalue(), Mark("spread-1", None)) == (marked, mark)
    assert (fixed, same != marked) == (Mark("spread-1", PAYLOAD), True)
    with Image.open(io.BytesIO(marked)) as opened:
        assert (opened.format, opened.size) == (kind, (160, 160))
        assert find_mark(np.asarray(opened.convert("RGB"))) == mark
        if kind == "PNG":
            assert opened.info["parameters"] == "an apple — Steps: 3"
        else:
            assert opened.getexif()[0x010E] == "an apple"


def test_a_picture_with_too_little_room_is_left_as_it_is_and_no_picture_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(slope(120)).save(file, "PNG")

    assert write_mark(file.getvalue(), Mark("spread-1", None)) == (file.getvalue(), None)
    with pytest.raises(NoPicture):
        write_mark(b"\x89PNG\r\n\x1a\n no picture", Mark("spread-1", None))
    for text in ("other-1", "spread-1:12", "spread-1:0123abcg", "spread-1:", ""):
        with pytest.raises(ValueError):
            Mark.parse(text)
    assert str(Mark.parse("spread-1:0123abcd")) == "spread-1:0123abcd"
