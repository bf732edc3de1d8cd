"""Drawing over a picture: chosen, painted on, framed; what is sent is what was seen."""

from __future__ import annotations

import io
from typing import Any

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Locator, Page, expect

from testkit.browser import OpenPage, Studio

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]


def photo(size: tuple[int, int] = (96, 64), colour: str = "teal") -> FilePayload:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return {"name": "photo.png", "mimeType": "image/png", "buffer": file.getvalue()}


def panel(page: Page) -> Locator:
    return page.get_by_role("group", name="Picture to draw over")


def choose(page: Page, **of: Any) -> None:
    panel(page).locator("input[type=file]").set_input_files(photo(**of))
    expect(panel(page).locator(".source-picture img")).to_be_visible()


def drawn(studio: Studio, page: Page) -> dict[str, Any]:
    """Press the button; the content, once it is drawn."""
    page.get_by_label("Prompt", exact=True).fill("a pear")
    with page.expect_response("**/content/generate") as answer:
        page.get_by_role("button", name="Generate", exact=False).first.click()
    assert answer.value.status == 202, answer.value.text()
    content_id = answer.value.json()["id"]
    expect(page.locator(f".strip .thumb.chosen[data-id='{content_id}']")).to_be_visible()
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    return studio.content(content_id)


def fetched(studio: Studio, image_id: str) -> Image.Image:
    found = httpx2.get(f"{studio.url}/api/v1/images/{image_id}").json()
    return Image.open(io.BytesIO(httpx2.get(found["url"]).content))


def test_a_file_is_drawn_over_at_its_own_size_and_comes_back_with_the_settings(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"width": None, "height": None})
    choose(page)
    expect(page.get_by_label("Width", exact=True)).to_have_value("96")
    panel(page).get_by_label("Strength", exact=True).fill("0.5")
    content = drawn(studio, page)
    parameters = content["parameters"]
    assert (parameters["width"], parameters["height"], parameters["strength"]) == (96, 64, 0.5)
    assert fetched(studio, parameters["image"]["image_id"]).getpixel((5, 5)) == (0, 128, 128)

    panel(page).get_by_role("button", name="Take the picture out").click()
    expect(panel(page).locator(".source-picture")).to_have_count(0)
    page.get_by_role("button", name="Use these settings").click()
    expect(panel(page).locator(".source-picture img")).to_be_visible()
    expect(panel(page).get_by_label("Strength", exact=True)).to_have_value("0.5")

    # What was drawn can be drawn over in turn.
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("menuitem", name="Draw over this picture").click()
    second = drawn(studio, page)
    assert second["parameters"]["image"]["image_id"] == content["images"][0]["id"]


def test_a_mask_is_painted_undone_and_sent_as_it_was_seen(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"width": None, "height": None})
    choose(page, size=(128, 128))
    panel(page).get_by_role("button", name="A part").click()
    page.get_by_label("Prompt", exact=True).fill("a pear")
    page.get_by_role("button", name="Generate", exact=False).first.click()
    expect(panel(page).get_by_role("alert")).to_have_text("Paint over what is to be drawn anew.")

    panel(page).get_by_role("button", name="Paint what to draw anew").click()
    painter = page.get_by_role("dialog")
    canvas = painter.get_by_role("img", name="Mask: ")
    painter.get_by_role("button", name="Use this mask").click()
    expect(painter.get_by_role("alert")).to_have_text("Paint over what is to be drawn anew.")
    painter.get_by_label("Brush size, px", exact=True).fill("20")
    box = canvas.bounding_box()
    assert box is not None

    def drag(start: tuple[float, float], end: tuple[float, float]) -> None:
        for place, act in ((start, page.mouse.down), (end, page.mouse.up)):
            page.mouse.move(box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"])
            act()

    drag((0.1, 0.25), (0.9, 0.25))
    drag((0.5, 0.75), (0.6, 0.75))
    page.keyboard.press("Control+z")
    expect(painter.get_by_role("button", name="Redo")).to_be_enabled()
    painter.get_by_role("button", name="Use this mask").click()
    expect(painter).to_have_count(0)
    expect(panel(page).get_by_role("img", name="Mask")).to_be_visible()

    parameters = drawn(studio, page)["parameters"]
    mask = fetched(studio, parameters["mask"]["image_id"]).convert("L")
    assert mask.size == (128, 128)
    assert [mask.getpixel(at) for at in ((64, 32), (64, 96), (64, 64))] == [255, 0, 0]


def test_a_mask_is_painted_with_the_keyboard_and_inverted(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"width": None, "height": None})
    choose(page, size=(128, 128), colour="olive")
    panel(page).get_by_role("button", name="A part").click()
    panel(page).get_by_role("button", name="Paint what to draw anew").click()
    painter = page.get_by_role("dialog")
    painter.get_by_label("Brush size, px", exact=True).fill("16")
    canvas = painter.get_by_role("img", name="Mask: ")
    canvas.focus()
    canvas.press("Space")
    canvas.press("Shift+ArrowRight")
    painter.get_by_role("button", name="Invert").click()
    painter.get_by_role("button", name="Use this mask").click()
    expect(painter).to_have_count(0)
    mask = fetched(studio, drawn(studio, page)["parameters"]["mask"]["image_id"]).convert("L")
    assert [mask.getpixel(at) for at in ((64, 64), (10, 10))] == [0, 255]


def test_a_frame_is_drawn_beyond_the_picture(studio: Studio, open_page: OpenPage) -> None:
    page = open_page(studio.url, draft={"width": None, "height": None})
    choose(page)
    panel(page).get_by_role("button", name="Beyond it").click()
    panel(page).get_by_role("button", name="1:1").click()
    expect(panel(page).get_by_label("Above, px")).to_have_value("16")
    expect(page.get_by_label("Height", exact=True)).to_have_value("96")
    content = drawn(studio, page)
    frame = content["parameters"]["outpaint"]
    assert [frame[side] for side in ("left", "right", "top", "bottom")] == [0, 0, 16, 16]
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (96, 96)


def test_a_picture_of_ones_own_is_chosen_or_dropped(studio: Studio, open_page: OpenPage) -> None:
    made = studio.draw("a plum to draw over")["images"][0]
    page = open_page(studio.url)
    panel(page).get_by_role("button", name="From my pictures").click()
    page.get_by_role("dialog").get_by_role("button", name="a plum to draw over").first.click()
    expect(panel(page).locator(".source-picture img")).to_be_visible()
    panel(page).get_by_role("button", name="Take the picture out").click()

    page.locator(".stage .frame img").first.drag_to(panel(page))
    expect(panel(page).locator(".source-picture img")).to_be_visible()
    expect(panel(page).get_by_text(f"{made['width']} × {made['height']}")).to_be_visible()


def test_a_second_pass_and_marks_are_asked_for_and_a_picture_is_enlarged(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"width": 64, "height": 64, "steps": 2})
    page.locator(".extras summary").click()
    page.get_by_label("Draw a second, larger pass").check()
    page.get_by_label("Times larger", exact=True).fill("1.5")
    page.get_by_label("Read A1111’s marks").check()
    expect(page.locator(".extras .field-hint")).to_have_text("96 × 96")
    content = drawn(studio, page)
    assert content["parameters"]["hires"]["scale"] == 1.5
    assert content["parameters"]["prompt_syntax"] == "a1111"
    assert content["images"][0]["width"] == 96

    page.reload()
    expect(page.get_by_label("Times larger", exact=True)).to_have_value("1.5")
    page.get_by_role("button", name="More actions").click()
    with page.expect_response("**/content/generate") as answer:
        page.get_by_role("menuitem", name="Enlarge twice").click()
    enlarged = answer.value.json()["id"]
    expect(page.locator(f".strip .thumb.chosen[data-id='{enlarged}']")).to_be_visible()
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    assert studio.content(enlarged)["images"][0]["width"] == 192
    # It has no settings to draw another one by.
    expect(page.get_by_role("button", name="Another one")).to_have_count(0)
    expect(page.get_by_role("button", name="Download")).to_be_visible()
