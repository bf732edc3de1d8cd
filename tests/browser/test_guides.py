"""Pictures that hold a drawing, or lend it their look, chosen in the page; real networks draw."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from playwright.sync_api import FilePayload, Locator, Page, expect

from scripts.stack import REPOSITORY, build_stack, free_port
from testkit.auxiliary.adapters import adapters_folder
from testkit.auxiliary.controls import awake
from testkit.browser import OpenPage, Studio

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]

UNET = REPOSITORY / "demo_model" / "sdxl-demo" / "unet"


@pytest.fixture(scope="module")
def guided(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server whose worker has a control network, `lines`, and two adapters."""
    folder = tmp_path_factory.mktemp("guided")
    unet: Any = UNet2DConditionModel
    unet = unet.from_pretrained(UNET)
    network: Any = ControlNetModel
    awake(network.from_unet(unet), 1).save_pretrained(folder / "controls" / "lines")
    stack = build_stack(
        port=free_port(),
        worker_port=free_port(),
        data_dir=folder / "data",
        logs=folder / "logs",
        extra={
            "MODEL_REFRESH_SECONDS": "2",
            "CONTROLS_DIR": str(folder / "controls"),
            "ADAPTERS_DIR": str(adapters_folder(folder / "adapters", unet)),
        },
    )
    try:
        stack.start()
        yield Studio(stack.backend_url, stack.worker_url, folder / "data", "", stack.backend)
    finally:
        stack.stop()


def photo() -> FilePayload:
    file = io.BytesIO()
    picture = Image.new("RGB", (64, 64), "teal")
    picture.paste("white", (16, 16, 48, 48))
    picture.save(file, "PNG")
    return {"name": "square.png", "mimeType": "image/png", "buffer": file.getvalue()}


def guides(page: Page) -> Locator:
    return page.locator(".guide")


def drawn(studio: Studio, page: Page) -> dict[str, Any]:
    """Press the button; the content, once it is drawn."""
    with page.expect_response("**/content/generate") as answer:
        page.get_by_role("button", name="Generate", exact=False).first.click()
    assert answer.value.status == 202, answer.value.text()
    content_id = answer.value.json()["id"]
    expect(page.locator(f".strip .thumb.chosen[data-id='{content_id}']")).to_be_visible()
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    return studio.content(content_id)


def test_a_drawing_is_held_to_a_shape_and_takes_up_a_look(
    guided: Studio, open_page: OpenPage
) -> None:
    page = open_page(guided.url, draft={"prompt": "a pear", "seed": 5, "seedIsLocked": True})
    plain = drawn(guided, page)
    page.locator(".guides summary").click()
    page.locator(".guides input[type=file]").set_input_files(photo())
    shape = guides(page).first
    expect(shape.get_by_role("img")).to_be_visible()
    expect(shape.get_by_label("By", exact=True)).to_have_value("control lines")
    shape.get_by_label("Find the picture's edges first").check()
    shape.get_by_label("To, part of the steps", exact=True).fill("0")
    page.get_by_role("button", name="Generate", exact=False).first.click()
    expect(shape.locator(".field-error")).to_have_text("It must end after it begins.")
    shape.get_by_label("To, part of the steps", exact=True).fill("0.5")

    page.locator(".guides input[type=file]").set_input_files(photo())
    look = guides(page).nth(1)
    look.get_by_label("By", exact=True).select_option("reference plus")
    expect(look.get_by_label("Find the picture's edges first")).to_have_count(0)
    held = drawn(guided, page)
    assert held["images"][0]["sha256"] != plain["images"][0]["sha256"]
    (control,) = held["parameters"]["controls"]
    (reference,) = held["parameters"]["references"]
    assert (control["model"], control["end"]) == ("lines", 0.5)
    assert control["canny"] is not None
    assert (reference["adapter"], reference["scale"]) == ("plus", 0.6)
    assert control["image"]["image_id"] == reference["image"]["image_id"]

    for _ in range(2):
        guides(page).first.get_by_role("button", name="Take this picture out").click()
    expect(guides(page)).to_have_count(0)
    page.get_by_role("button", name="Use these settings").click()
    expect(guides(page)).to_have_count(2)
    expect(guides(page).first.get_by_label("Find the picture's edges first")).to_be_checked()
    again = drawn(guided, page)
    assert again["images"][0]["sha256"] == held["images"][0]["sha256"]
