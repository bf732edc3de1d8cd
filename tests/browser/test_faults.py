"""Faults that a working day with the page once showed: each is done again as it was found."""

from __future__ import annotations

import json
import re
import zipfile
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Route, expect

from testkit.browser import OpenPage, Studio, Watch, fitting_lora, wait_until
from testkit.documents import codes_and_fields

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]

RAW = "raw words of the server"


def prompt_of(page: Page) -> str:
    return page.get_by_label("Prompt", exact=True).input_value()


def upload(studio: Studio, name: str, trigger: str) -> str:
    answer = httpx2.post(
        f"{studio.url}/api/v1/loras/models/upload",
        files={"file": ("x.safetensors", fitting_lora(studio.worker_url, trigger))},
        data={"name": name},
        timeout=60,
    )
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def test_everything_shown_belongs_to_the_picture_that_is_shown(
    studio: Studio, open_page: OpenPage
) -> None:
    """Seed, link and settings of the second picture of a request; the lock keeps its seed."""
    made = studio.draw("two figs", seed=42, num_images=2)
    page = open_page(studio.url, path=f"#/content/{made['id']}_2")
    # Times and hashes in the report may have the same digits.
    seed = page.locator(".report .facts > div").filter(has=page.get_by_text("Seed", exact=True))
    expect(seed.locator(".num")).to_have_text("43")
    page.get_by_role("button", name="Picture 1", exact=True).click()
    expect(seed.locator(".num")).to_have_text("42")
    page.get_by_role("button", name="Picture 2", exact=True).click()
    page.get_by_role("button", name="Use these settings").click()

    expect(page.get_by_label("Seed", exact=True)).to_have_value("43")
    expect(page.get_by_label("Pictures", exact=True)).to_have_value("1")
    # The stage shows whose settings they are, and the button makes that very picture again.
    expect(page.locator(f".strip .thumb.chosen[data-id='{made['id']}']")).to_be_visible()
    with page.expect_response("**/content/generate") as answer:
        page.get_by_role("button", name="Generate", exact=False).first.click()
    again = answer.value.json()["id"]
    expect(
        page.locator(f".strip .thumb.chosen[data-id='{again}'] img:not(.preview)")
    ).to_be_visible()
    assert studio.content(again)["images"][0]["sha256"] == made["images"][1]["sha256"]
    # Taken back, the form is as it was before.
    page.goto(f"{studio.url}/#/content/{made['id']}_1")
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("menuitem", name="Use only the seed").click()
    page.get_by_role("button", name="Undo").click()
    page.goto(f"{studio.url}/#/create")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("43")
    # The lock: from "random" it keeps the seed of the picture in view.
    seed = page.get_by_label("Seed", exact=True)
    lock = page.get_by_role("button", name="Keep the seed of the picture shown")
    lock.click()
    expect(seed).to_have_value("")
    lock.click()
    expect(seed).to_have_value(page.locator(".report dd .num").first.inner_text())


def test_a_picture_is_not_made_without_a_lora_that_was_deleted(
    studio: Studio, open_page: OpenPage
) -> None:
    lora = upload(studio, "gone soon", "gonesoon")
    made = studio.draw("a fig", loras=[{"lora_model_id": lora, "scale": 0.5}])
    assert httpx2.delete(f"{studio.url}/api/v1/loras/models/{lora}").status_code == 204
    page = open_page(
        studio.url, path=f"#/content/{made['id']}", draft={"loras": [{"id": lora, "scale": 1}]}
    )
    sent: list[str] = []
    page.on("request", lambda request: sent.append(f"{request.method} {request.url}"))
    expect(page.get_by_text("A LoRA of the form was deleted meanwhile")).to_be_visible()
    page.get_by_role("button", name="Another one").click()

    expect(page.get_by_text("gone soon was deleted since")).to_be_visible()
    assert not [one for one in sent if one.endswith("/content/generate")]
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_text("but without gone soon")).to_be_visible()


def test_words_are_put_in_and_taken_out_as_words_and_undo_knows_of_it(
    studio: Studio, open_page: OpenPage
) -> None:
    lora = upload(studio, "sprout", "sprout")
    page = open_page(studio.url, draft={"loras": [{"id": lora, "scale": 1}]})
    field = page.get_by_label("Prompt", exact=True)
    chip = page.locator(".chips").get_by_role("button", name="sprout")
    for text in ("a sprout, red apple", "sprouts in a row, a dog"):
        field.fill(text)
        chip.click()
        expected = text if text.startswith("a ") else f"{text}, sprout"
        expect(field).to_have_value(expected)
    field.fill("")
    field.press_sequentially("a dog")
    chip.click()
    expect(field).to_have_value("a dog, sprout")
    expect(chip).to_have_attribute("aria-pressed", "true")
    field.press("Control+z")
    expect(field).to_have_value("a dog")
    chip.click()
    chip.click()
    expect(field).to_have_value("a dog")
    # Typed, the word is offered; weights go up and down by the keyboard.
    field.press("End")
    field.press_sequentially(", spr")
    expect(page.get_by_role("option", name="sprout")).to_be_visible()
    field.press("Enter")
    expect(field).to_have_value("a dog, sprout")
    field.press("Control+ArrowUp")
    expect(field).to_have_value("a dog, (sprout:1.1)")
    field.press("Control+ArrowDown")
    expect(field).to_have_value("a dog, sprout")


def test_numbers_are_read_with_a_comma_or_a_point_and_wrong_ones_told_while_typing(
    studio: Studio, open_page: OpenPage
) -> None:
    lora = upload(studio, "scaled", "scaledword")
    page = open_page(
        studio.url, locale="es-ES", draft={"prompt": "a fig", "loras": [{"id": lora, "scale": 1}]}
    )
    cfg = page.get_by_label("Guía (CFG) (valor exacto)")
    cfg.fill("7,5")
    scale = page.get_by_label("scaled (valor exacto)")
    for text, is_wrong in (("0,5", False), ("", True), ("30", True), ("1.5", False)):
        scale.fill(text)
        expect(page.locator(".lora-use .field-error")).to_have_count(1 if is_wrong else 0)
    with page.expect_request("**/content/generate") as request:
        page.get_by_role("button", name="Generar").first.click()
    body: Any = request.value.post_data_json
    assert (body["cfg"], body["loras"][0]["scale"]) == (7.5, 1.5)
    # A grid's lists: the decimal comma is no separator, and what was read is shown.
    page.goto(f"{studio.url}/#/grid")
    page.get_by_label("Horizontal (X)").last.select_option("cfg")
    values = page.get_by_label("Valores").first
    for text, read in (("3,5; 7", "3,5 y 7"), ("1,5, 3", "1,5 y 3"), ("3,5", "3,5")):
        values.fill(text)
        expect(page.get_by_text(f": {read}.").first).to_be_attached()
    page.get_by_label("Horizontal (X)").last.select_option("steps")
    price = page.locator(".expected")
    values.fill("1; 2")
    cheap = price.inner_text()
    values.fill("90; 100")
    expect(price).not_to_have_text(cheap)


def test_a_gallery_that_is_narrowed_down_stays_so_and_shows_what_is_new(
    studio: Studio, open_page: OpenPage
) -> None:
    studio.draw("a walnut in a bowl")
    page = open_page(studio.url, path="#/gallery?status=succeeded&q=walnut")
    thumbs = page.locator(".virtual-grid .thumb img")
    expect(thumbs).to_have_count(1)
    page.reload()
    expect(thumbs).to_have_count(1)
    expect(page.get_by_label("Search in prompts")).to_have_value("walnut")
    # Made in another tab of the same browser: this one hears of it, and so does its own form.
    other = page.context.new_page()
    other.goto(f"{studio.url}/#/create")
    other.get_by_label("Prompt", exact=True).fill("another WALNUT")
    other.keyboard.press("Control+Enter")
    expect(thumbs).to_have_count(2)
    page.goto(f"{studio.url}/#/create")
    assert prompt_of(page) != "another WALNUT"
    # From the picture back to the gallery: its filter, and the focus where it was.
    page.goto(f"{studio.url}/#/gallery?status=succeeded&q=walnut")
    page.locator(".virtual-grid .thumb").nth(1).click()
    expect(page.locator(".report")).to_contain_text("a walnut in a bowl")
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("q=walnut"))
    expect(page.locator("[aria-posinset='2'] .thumb")).to_be_focused()


def test_a_picture_that_is_left_as_soon_as_it_is_seen_has_the_focus_in_the_gallery(
    studio: Studio, open_page: OpenPage
) -> None:
    studio.draw("a chestnut in a bowl")
    page = open_page(studio.url, path="#/gallery?status=succeeded&q=chestnut")
    thumb = page.locator(".virtual-grid .thumb")
    expect(thumb).to_have_count(1)
    # The key is pressed at the moment in which the view comes into the document.
    page.evaluate(
        """new MutationObserver((_, watch) => {
            if (!document.querySelector('.viewer')) return;
            watch.disconnect();
            window.leftAt = location.hash;
            dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}));
        }).observe(document.body, {childList: true, subtree: true})"""
    )
    thumb.click()
    expect(page).to_have_url(re.compile("q=chestnut"))
    page.wait_for_function("window.leftAt")
    assert "#/content/" in page.evaluate("window.leftAt")
    expect(thumb).to_be_focused()


def test_pictures_of_a_request_go_into_the_bin_one_by_one_and_come_back(
    studio: Studio, open_page: OpenPage
) -> None:
    made = studio.draw("three hazelnuts", num_images=3)
    page = open_page(studio.url, path="#/gallery?q=hazelnuts")
    thumbs = page.locator(".virtual-grid .thumb img")
    expect(thumbs).to_have_count(3)
    select = page.get_by_role("button", name="Select", exact=True)
    select.click()
    page.keyboard.press("Control+a")
    expect(page.get_by_text("3 selected")).to_be_visible()
    page.keyboard.press("Escape")
    select.click()
    page.locator(f"[data-id='{made['id']}_1']").click()
    page.locator(f"[data-id='{made['id']}_3']").click(modifiers=["Shift"])
    expect(page.get_by_text("3 selected")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as ZIP").click()
    with zipfile.ZipFile(download.value.path()) as files:
        assert files.testzip() is None
        assert [name[-6:] for name in files.namelist()] == [
            f"{image['seed'] % 100:02d}.png" for image in made["images"]
        ]
    page.locator(f"[data-id='{made['id']}_1']").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("2 pictures are in the bin.")).to_be_visible()
    expect(thumbs).to_have_count(1)
    # The button that had the focus is gone: the view has it, not the page's beginning.
    expect(page.locator("main")).to_be_focused()
    assert len(studio.content(made["id"])["images"]) == 1
    page.get_by_role("button", name="Undo").click()
    expect(thumbs).to_have_count(3)
    assert len(studio.content(made["id"])["images"]) == 3


def test_a_picture_is_looked_at_pixel_by_pixel(studio: Studio, open_page: OpenPage) -> None:
    made = studio.draw("two almonds", num_images=2)
    page = open_page(studio.url, path=f"#/content/{made['id']}_1")
    page.get_by_role("button", name="Look at it large").click()
    large = page.get_by_role("dialog", name="Picture, large")
    image = large.locator("img")
    fit = float(image.get_attribute("data-scale") or 0)
    assert fit > 5
    # It can be dragged onto the desktop, as the file that it is.
    dragged = image.evaluate(
        """(e) => { const t = new DataTransfer();
        e.dispatchEvent(new DragEvent('dragstart', { dataTransfer: t, bubbles: true }));
        return t.getData('DownloadURL'); }"""
    )
    assert re.match(r"image/png:[\w.-]+\.png:http://127\.0\.0\.1:\d+/", dragged), dragged
    page.keyboard.press("1")
    expect(image).to_have_attribute("data-scale", "1.000")
    page.keyboard.press("+")
    expect(image).to_have_attribute("data-scale", "1.250")
    page.keyboard.press("0")
    page.keyboard.press("ArrowRight")
    second = page.get_by_role("button", name="Picture 2", exact=True, include_hidden=True)
    expect(second).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(large).to_have_count(0)
    expect(page.get_by_role("button", name="Look at it large")).to_be_focused()


def test_a_dropped_picture_brings_its_settings_and_no_drop_leaves_the_page(
    studio: Studio, open_page: OpenPage
) -> None:
    made = studio.draw("a dropped cashew", negative_prompt="blurry", seed=77, cfg=3.5)
    data = httpx2.get(made["image_url"]).content
    page = open_page(studio.url, path="#/costs")
    expect(page.get_by_role("heading", name="Costs")).to_be_visible()
    drop = """([bytes, name, type]) => { const t = new DataTransfer();
        t.items.add(new File([new Uint8Array(bytes)], name, { type }));
        const options = { dataTransfer: t, bubbles: true, cancelable: true };
        const over = new DragEvent('dragover', options);
        document.querySelector('main').dispatchEvent(over);
        const event = new DragEvent('drop', options);
        document.querySelector('main').dispatchEvent(event);
        return [over.defaultPrevented, event.defaultPrevented]; }"""
    assert page.evaluate(drop, [list(data), "x.png", "image/png"]) == [True, True]
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a dropped cashew")
    expect(page.get_by_label("Negative prompt")).to_have_value("blurry")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("77")
    expect(page.get_by_label("Guidance (CFG) (exact value)")).to_have_value("3.5")


def test_an_edited_avatar_is_not_lost_and_its_first_mistake_has_the_focus(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, path="#/avatars")
    page.get_by_role("button", name="New avatar").click()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    expect(page.get_by_text("Say what the avatar looks like.")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("Mara")
    page.keyboard.press("Escape")
    expect(page.get_by_text("What you changed is not saved.")).to_be_visible()
    expect(page.get_by_label("Name", exact=True)).to_have_value("Mara")
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_long_prompt_leaves_the_picture_and_its_actions_on_the_screen(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("ERR_INTERNET_DISCONNECTED")
    made = studio.draw("a very detailed description of a nut, " * 35, width=64, height=96)
    page = open_page(studio.url, viewport={"width": 1280, "height": 720})
    for view in (f"content/{made['id']}", "create"):
        page.goto(f"{studio.url}/#/{view}")
        frame = page.locator(".frame")
        expect(frame).to_be_visible()
        place = frame.bounding_box()
        assert place is not None
        assert place["y"] >= 0
        assert place["y"] + place["height"] <= 720
        assert abs(place["width"] / place["height"] - 64 / 96) < 0.02, "its own shape"
        expect(page.get_by_role("button", name="Another one")).to_be_in_viewport(ratio=1)
    # A banner takes its room from the view, and pushes nothing off the screen.
    page.get_by_label("Prompt", exact=True).fill("a nut")
    page.context.set_offline(True)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".banner")).to_be_visible()
    generate = page.get_by_role("button", name="Generate", exact=False).first
    expect(generate).to_be_in_viewport(ratio=1)
    page.context.set_offline(False)


@pytest.mark.parametrize("locale", ["en-GB", "es-ES"])
def test_every_error_is_one_sentence_of_the_pages_own(
    studio: Studio, open_page: OpenPage, watch: Watch, locale: str
) -> None:
    """All codes and all fields of the API's document; nothing that the server wrote is shown."""
    watch.expected.append("status of 4")
    page = open_page(studio.url, locale=locale, draft={"prompt": "a fig"})
    answers: list[dict[str, Any]] = []

    def refuse(route: Route) -> None:
        body = json.dumps({"type": "about:blank", "status": 422, "detail": RAW, **answers[-1]})
        route.fulfill(status=422, content_type="application/problem+json", body=body)

    page.route("**/content/generate", refuse)
    button = page.locator(".composer button[type=submit]")
    expect(button).to_be_enabled()
    codes, fields = codes_and_fields()
    assert len(codes) > 20
    assert len(fields) > 30
    facts = {"minimum": 1.5, "maximum": 9, "width": 512, "height": 640, "maximum_bytes": 1}
    asked: list[dict[str, Any]] = [
        *({"error_code": code} for code in codes),
        {"error_code": "A_CODE_OF_LATER"},
        {"error_code": "CUDA_OOM", "details": facts},
        *(
            {"error_code": "INVALID_REQUEST", "field": field, "details": details}
            for field in fields
            for details in ({}, facts)
        ),
        {"error_code": "INVALID_REQUEST", "field": "a_field_of_later"},
    ]
    seen = {}
    for answer in asked:
        answers.append(answer)
        with page.expect_response("**/content/generate"):
            button.click()
        text = wait_until(
            page,
            "[...document.querySelectorAll('.composer .field-error')].map((e) => "
            "e.textContent).join(' ').trim()",
        )
        seen[json.dumps(answer)] = text
        assert RAW not in text, answer
        assert "{" not in text, (answer, text)
        assert "_" not in text, (answer, text)
        assert text[0].isupper(), (answer, text)
        assert text.endswith("."), (answer, text)
    unknown = seen[json.dumps({"error_code": "A_CODE_OF_LATER"})]
    for code in codes:
        assert seen[json.dumps({"error_code": code})] != unknown, f"{code} has no words"
    other = "Un valor:" if locale == "es-ES" else "A value:"
    for field in fields:
        words = seen[json.dumps({"error_code": "INVALID_REQUEST", "field": field, "details": {}})]
        assert not words.startswith(other), f"{field} has no name"
    decimal = "1,5" if locale == "es-ES" else "1.5"
    assert (
        decimal
        in seen[json.dumps({"error_code": "INVALID_REQUEST", "field": "cfg", "details": facts})]
    )
    assert "512 × 640" in seen[json.dumps({"error_code": "CUDA_OOM", "details": facts})]
