"""A picture is checked in the page, without an account too, and drawn again from its receipt."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import expect

from app.services.marking.watermark.files import write_mark
from app.services.marking.watermark.methods import Mark
from testkit.browser import OpenPage, Studio, Watch

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]


def drawn(studio: Studio, folder: Path, **values: Any) -> Path:
    content = studio.draw("a parrot", seed=5, **values)
    file = folder / "parrot.png"
    file.write_bytes(httpx2.get(content["image_url"]).content)
    return file


def test_a_picture_is_checked_and_drawn_again(
    studio: Studio, open_page: OpenPage, tmp_path: Path
) -> None:
    file = drawn(studio, tmp_path)
    page = open_page(studio.url, path="#/verify")
    chosen = page.get_by_label("Choose a picture")
    chosen.set_input_files(file)
    expect(page.get_by_role("heading", name="Signed by modal-sdxl-lora")).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("a parrot")
    page.get_by_role("button", name="Draw it again and compare").click()
    expect(page.get_by_text("Every pixel is equal (4,096).")).to_be_visible()

    bare = io.BytesIO()
    with Image.open(file) as opened:
        opened.save(bare, "PNG")
    unsigned = tmp_path / "unsigned.png"
    unsigned.write_bytes(bare.getvalue())
    chosen.set_input_files(unsigned)
    expect(page.get_by_role("heading", name="No signature")).to_be_visible()
    expect(page.get_by_role("button", name="Draw it again and compare")).to_have_count(0)


def test_nobody_needs_an_account_to_check_in_either_language(
    keyed: Studio, open_page: OpenPage, watch: Watch, tmp_path: Path
) -> None:
    watch.expected = ["422"]
    text = tmp_path / "text.png"
    text.write_text("no picture")
    changed = Image.new("RGB", (64, 64), (9, 90, 9))
    changed.save(tmp_path / "plain.png")
    keyed.make_key("checks")
    page = open_page(keyed.url)
    page.get_by_role("link", name="Check a picture").click()
    page.get_by_label("Choose a picture").set_input_files(text)
    expect(page.get_by_role("alert")).to_contain_text("not a picture that can be read")
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "plain.png")
    expect(page.get_by_role("heading", name="No signature")).to_be_visible()
    marked = tmp_path / "marked.png"
    Image.linear_gradient("L").convert("RGB").save(marked)
    marked.write_bytes(write_mark(marked.read_bytes(), Mark("spread-1", 0x0A1B2C3D))[0])
    page.get_by_label("Choose a picture").set_input_files(marked)
    expect(page.get_by_text("0a1b2c3d")).to_be_visible()
    page.get_by_label("Language").select_option("es")
    expect(page.get_by_role("heading", name="Sin firma")).to_be_visible()
