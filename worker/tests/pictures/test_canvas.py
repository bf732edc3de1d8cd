"""Sizes, frames, crops and edges of what is drawn over, and the way back to the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdxl_contract.errors import ImageLoadFailed
from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import GenerateRequest
from sdxl_worker.pictures.canvas import Canvas, make_canvas
from sdxl_worker.pictures.filling import filled
from testkit.worker import photo_like

LIMITS = ModelLimits(native_size=128, min_side=64, max_side=256, multiple_of=8)
URL = "https://bucket.example/a.png"


def asked(**fields: Any) -> GenerateRequest:
    return GenerateRequest(prompt="x", image={"url": URL}, **fields)


def source(width: int, height: int) -> Image.Image:
    return photo_like(max(width, height)).crop((0, 0, width, height))


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int], level: int = 255) -> Any:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=level)
    return mask


def canvas(
    size: tuple[int, int], mask: Image.Image | None = None, **fields: Any
) -> tuple[Image.Image, Canvas]:
    if mask is not None:
        fields["mask"] = {"url": URL}
    picture = source(*size)
    return picture, make_canvas(asked(**fields), LIMITS, picture, mask)


@pytest.mark.parametrize(
    ("size", "fields", "expected"),
    [
        ((128, 96), {}, (128, 96)),
        ((130, 98), {}, (128, 96)),
        ((1024, 1024), {}, (128, 128)),
        ((1024, 512), {}, (184, 88)),
        ((16, 16), {}, (128, 128)),
        ((200, 100), {"width": 128}, (128, 64)),
        ((200, 100), {"height": 128}, (256, 128)),
        ((4000, 10), {}, (256, 64)),
        ((128, 128), {"width": 64, "height": 256}, (64, 256)),
    ],
)
def test_sides_left_open_are_the_source_s_as_far_as_the_model_allows(
    size: tuple[int, int], fields: dict[str, int], expected: tuple[int, int]
) -> None:
    found = make_canvas(asked(**fields), LIMITS, source(*size), None)
    assert found.size == expected


def test_a_source_of_the_right_size_keeps_its_very_pixels() -> None:
    picture, found = canvas((128, 96))
    assert found.pixels.tobytes() == picture.tobytes()
    drawn = Image.new("RGB", (128, 96), "red")
    assert found.finished(drawn) is drawn


def test_a_source_is_cut_to_its_middle_or_stretched() -> None:
    stripes = Image.new("RGB", (192, 64), "red")
    stripes.paste(Image.new("RGB", (64, 64), "blue"), (64, 0))
    for fit, colours in (("crop", {(0, 0, 255)}), ("stretch", {(0, 0, 255), (255, 0, 0)})):
        request = asked(width=64, height=64, fit=fit)
        found = make_canvas(request, LIMITS, stripes, None).pixels
        assert {found.getpixel((4, 4)), found.getpixel((32, 32))} == colours


@pytest.mark.parametrize("blur", [0, 4, 12])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("area", ["whole", "masked"])
@pytest.mark.parametrize("fill", ["original", "surroundings", "noise", "nothing"])
def test_outside_the_mask_every_byte_is_the_source_s(
    blur: int, soft: bool, area: str, fill: str
) -> None:
    mask = box_mask((128, 96), (40, 30, 70, 60))
    inpaint = {"blur": blur, "soft": soft, "area": area, "fill": fill, "padding": 8}
    picture, found = canvas((128, 96), mask, inpaint=inpaint)
    whole = np.asarray(found.finished(Image.new("RGB", found.size, (255, 0, 255))))
    reach = 4 * blur
    outside = np.ones((96, 128), dtype=bool)
    outside[max(30 - reach, 0) : 60 + reach, max(40 - reach, 0) : 70 + reach] = False
    assert whole.shape == (96, 128, 3)
    assert (whole[outside] == np.asarray(picture)[outside]).all()
    assert tuple(whole[45, 55]) == (255, 0, 255) or blur > 4


def test_the_mask_s_surroundings_are_enlarged_to_the_drawing_and_put_back() -> None:
    mask = box_mask((400, 300), (100, 100, 120, 110))
    picture, found = canvas((400, 300), mask, inpaint={"area": "masked", "blur": 0, "padding": 20})
    assert found.size == (128, 128)
    assert found._box == (80, 75, 140, 135)
    part = picture.crop((80, 75, 140, 135)).resize((128, 128), Image.Resampling.LANCZOS)
    assert found.pixels.tobytes() == part.tobytes()
    whole = found.finished(Image.new("RGB", (128, 128), "red"))
    assert whole.size == (400, 300)
    assert whole.getpixel((110, 105)) == (255, 0, 0)
    assert whole.getpixel((90, 90)) == picture.getpixel((90, 90))


@pytest.mark.parametrize("corner", [(0, 0, 10, 10), (390, 290, 400, 300), (0, 290, 400, 300)])
def test_surroundings_end_where_the_source_does(corner: tuple[int, int, int, int]) -> None:
    mask = box_mask((400, 300), corner)
    _, found = canvas((400, 300), mask, inpaint={"area": "masked", "padding": 50})
    assert found._box is not None
    left, top, right, bottom = found._box
    assert 0 <= left < right <= 400
    assert 0 <= top < bottom <= 300


@pytest.mark.parametrize("area", ["whole", "masked"])
def test_an_empty_mask_is_refused(area: str) -> None:
    with pytest.raises(ImageLoadFailed, match="mask is empty") as refused:
        canvas((128, 96), Image.new("L", (128, 96), 0), inpaint={"area": area})
    assert refused.value.details == {"field": "mask", "reason": "empty_mask"}


def test_a_source_that_comes_back_whole_must_fit_an_answer() -> None:
    with pytest.raises(ImageLoadFailed, match="at most 16777216 pixels"):
        make_canvas(
            asked(mask={"url": URL}, inpaint={"area": "masked"}), LIMITS,
            Image.new("RGB", (5000, 4000)), box_mask((5000, 4000), (0, 0, 9, 9)),
        )  # fmt: skip


def test_an_outpainting_draws_its_borders_and_the_overlap_and_keeps_the_rest() -> None:
    outpaint = {"left": 32, "bottom": 64, "overlap": 8}
    picture, found = canvas((96, 64), outpaint=outpaint, inpaint={"blur": 0})
    assert found.size == (128, 128)
    assert found.mask is not None
    expected = box_mask((128, 128), (0, 0, 128, 128))
    expected.paste(0, (40, 0, 128, 56))
    assert found.mask.tobytes() == expected.tobytes()
    whole = found.finished(Image.new("RGB", (128, 128), "red"))
    assert whole.crop((40, 0, 128, 56)).tobytes() == picture.crop((8, 0, 96, 56)).tobytes()
    assert whole.getpixel((39, 20)) == (255, 0, 0)
    # What is drawn begins as the colours next to it, not as grey.
    below = np.asarray(found.pixels)[70:, 60:]
    assert np.abs(below.mean((0, 1)) - np.asarray(picture)[50:].mean((0, 1))).max() < 60


def test_a_hole_takes_the_colours_around_it_and_nothing_else_changes() -> None:
    picture = Image.new("RGB", (50, 40), (200, 40, 40))
    mask = box_mask((50, 40), (10, 10, 33, 30))
    holed = picture.copy()
    holed.paste((0, 255, 0), (10, 10, 33, 30))
    assert filled(holed, mask).tobytes() == picture.tobytes()
    noisy = source(61, 47)
    found = np.asarray(filled(noisy, box_mask((61, 47), (5, 5, 40, 40))))
    outside = np.ones((47, 61), dtype=bool)
    outside[5:40, 5:40] = False
    assert (found[outside] == np.asarray(noisy)[outside]).all()
    assert filled(noisy, Image.new("L", noisy.size, 255)).getextrema() == ((128, 128),) * 3
