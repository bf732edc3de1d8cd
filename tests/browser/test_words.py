"""Styles, wildcards and embeddings: kept in the page, put into a request, told of a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Locator, Page, Request, expect

from testkit.browser import OpenPage, Studio, Watch, check_accessibility
from testkit.loras.plain_bytes import safetensors_bytes

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]

WORDS = "/api/v1/words"


@pytest.fixture
def words(studio: Studio) -> Iterator[httpx2.Client]:
    """The API; what a test kept is removed, as other tests' forms would show it."""
    with httpx2.Client(base_url=studio.url, timeout=30) as http:
        yield http
        for kind in ("styles", "wildcards"):
            for one in http.get(f"{WORDS}/{kind}").json()["items"]:
                http.delete(f"{WORDS}/{kind}/{one['name']}")


def prompt_of(page: Page) -> Locator:
    return page.get_by_label("Prompt", exact=True)


def style(page: Page) -> Locator:
    return page.locator("fieldset.styles").get_by_role("button", name="Ink", exact=True)


def row(dialog: Locator, name: str) -> Locator:
    """What opens the style or wildcard of this name."""
    return dialog.locator(
        ".words-row > button", has=dialog.page.locator(f"strong:text-is('{name}')")
    )


def open_manager(page: Page) -> Locator:
    page.get_by_role("button", name="Styles and presets").click()
    presets = page.get_by_role("dialog", name="Styles and presets")
    presets.get_by_role("button", name="Own styles and wildcards").click()
    return page.get_by_role("dialog", name="Own styles and wildcards")


def drawn(studio: Studio, page: Page) -> dict[str, Any]:
    """Press the button; the content, once it is drawn and shown."""
    with page.expect_response("**/content/generate") as answer:
        page.get_by_role("button", name="Generate", exact=False).first.click()
    assert answer.value.status == 202, answer.value.text()
    content_id = answer.value.json()["id"]
    expect(page.locator(f".strip .thumb.chosen[data-id='{content_id}']")).to_be_visible()
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    return studio.content(content_id)


def test_a_style_and_a_wildcard_are_made_drawn_told_and_had_again(
    studio: Studio, words: httpx2.Client, open_page: OpenPage
) -> None:
    begun = {"prompt": "a fig", "seed": 5, "seedIsLocked": True}
    page = open_page(studio.url, draft=begun, reduced_motion="reduce")
    requests: list[Request] = []

    def note(request: Request) -> None:
        requests.append(request)

    page.on("request", note)
    expect(page.locator("fieldset.styles")).to_have_count(0)
    dialog = open_manager(page)
    dialog.get_by_role("button", name="New style").click()
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_label("Name")).to_have_attribute("aria-invalid", "true")
    dialog.get_by_label("Name").fill("Ink")
    dialog.get_by_label("Prompt", exact=True).fill("ink drawing of {prompt}")
    dialog.get_by_label("Negative prompt").fill("photo")
    dialog.get_by_label("Negative prompt").press("Control+Enter")  # not the form behind it
    check_accessibility(page, "a style's form")
    dialog.get_by_role("button", name="Save").click()
    expect(row(dialog, "Ink")).to_be_visible()

    dialog.get_by_role("button", name="Wildcards").click()
    dialog.get_by_role("button", name="New wildcard").click()
    dialog.get_by_label("Name").fill("a__b")
    dialog.get_by_label("Lines").fill("red\nblue\n")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_label("Name")).to_have_attribute("aria-invalid", "true")
    dialog.get_by_label("Name").fill("Tone")
    dialog.get_by_role("button", name="Save").click()
    check_accessibility(page, "the wildcards")
    dialog.get_by_role("button", name="Put tone into the prompt").click()
    expect(dialog).to_have_count(0)
    expect(prompt_of(page)).to_have_value("a fig __tone__")
    assert words.get(f"{WORDS}/wildcards").json()["items"] == [
        {"name": "tone", "lines": ["red", "blue"]}
    ]

    style(page).click()
    with page.expect_response(f"**{WORDS}/wildcards"):
        page.reload()
    expect(style(page)).to_have_attribute("aria-pressed", "true")
    first = drawn(studio, page)
    assert re.fullmatch("ink drawing of a fig (red|blue)", first["prompt"])
    written = {"prompt": "a fig __tone__", "negative_prompt": "", "styles": ["Ink"]}
    assert first["written"] == written
    report = page.locator(".report")
    expect(report).to_contain_text("Written as a fig __tone__")
    expect(report.locator(".facts div", has_text="Styles")).to_contain_text("Ink")

    # What a wildcard became is taken as it was drawn, so that it is the same picture.
    page.get_by_role("button", name="Use these settings").click()
    expect(prompt_of(page)).to_have_value(first["prompt"])
    expect(style(page)).to_have_attribute("aria-pressed", "false")

    prompt_of(page).fill("")
    prompt_of(page).press_sequentially("a pear, __t")
    expect(page.get_by_role("option", name="__tone__")).to_be_visible()
    prompt_of(page).press("Enter")
    expect(prompt_of(page)).to_have_value("a pear, __tone__")

    prompt_of(page).fill("a pear")
    page.get_by_label("Negative prompt").fill("")
    style(page).click()
    second = drawn(studio, page)
    assert (second["prompt"], second["negative_prompt"]) == ("ink drawing of a pear", "photo")
    page.get_by_role("button", name="Reset the form").click()
    expect(style(page)).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Use these settings").click()
    expect(prompt_of(page)).to_have_value("a pear")
    expect(page.get_by_label("Negative prompt")).to_have_value("")
    expect(style(page)).to_have_attribute("aria-pressed", "true")

    assert sum(one.url.endswith("/content/generate") for one in requests) == 2
    # Changed since, the style would make another picture: the words are taken instead.
    words.put(f"{WORDS}/styles/Ink", json={"prompt": "ink"}).raise_for_status()
    with page.expect_response(f"**{WORDS}/wildcards"):
        page.reload()
    expect(style(page)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Use these settings").click()
    expect(prompt_of(page)).to_have_value("ink drawing of a pear")
    expect(style(page)).to_have_attribute("aria-pressed", "false")


def test_a_style_that_is_removed_is_told_before_it_is_missed(
    studio: Studio, words: httpx2.Client, open_page: OpenPage
) -> None:
    words.put(f"{WORDS}/styles/Ink", json={"prompt": "ink"}).raise_for_status()
    page = open_page(studio.url, draft={"prompt": "a fig", "styles": ["Ink", "Gone"]})
    gone = page.locator("fieldset.styles").get_by_role("button", name="Gone", exact=True)
    expect(page.locator("fieldset.styles .field-error")).to_have_text(
        "There is no style “Gone” any more."
    )
    gone.click()
    expect(gone).to_have_count(0)
    expect(page.locator("fieldset.styles .field-error")).to_have_count(0)

    page.locator("fieldset.styles").get_by_role("button", name="Own styles and wildcards").click()
    dialog = page.get_by_role("dialog", name="Own styles and wildcards")
    row(dialog, "Ink").click()
    dialog.get_by_label("Name").fill("Pen")
    dialog.get_by_role("button", name="Save").click()
    dialog.get_by_role("button", name="Remove Pen").click()
    page.get_by_role("dialog", name="Remove Pen?").get_by_role("button", name="Delete").click()
    expect(row(dialog, "Pen")).to_have_count(0)
    dialog.get_by_role("button", name="Close").click()
    expect(page.locator("fieldset.styles")).to_have_count(0)
    assert words.get(f"{WORDS}/styles").json()["items"] == []


def test_an_embedding_is_uploaded_meant_by_its_word_and_removed(
    studio: Studio, words: httpx2.Client, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("status of 422")
    page = open_page(studio.url, draft={"prompt": "a fig"}, reduced_motion="reduce")
    dialog = open_manager(page)
    dialog.get_by_role("button", name="Embeddings").click()
    add = dialog.get_by_role("button", name="Add the embedding")

    def choose(data: bytes) -> None:
        file = {"name": "fig_style.safetensors", "mimeType": "", "buffer": data}
        dialog.get_by_label("File").set_input_files(file)  # type: ignore[arg-type]

    choose(b"no such thing")
    expect(dialog.get_by_label("Word")).to_have_value("fig_style")
    add.click()
    # Why, beside the field, and the file and its word are not lost over it.
    expect(dialog.get_by_label("File")).to_have_attribute("aria-invalid", "true")
    expect(dialog.get_by_label("Word")).to_have_value("fig_style")
    choose(safetensors_bytes({"clip_l": (2, 64), "clip_g": (2, 96)}, {"tag": "fig"}))
    add.click()
    remove = dialog.get_by_role("button", name="Remove fig_style")
    expect(remove).to_be_visible()
    expect(dialog.get_by_label("Word")).to_have_value("")
    check_accessibility(page, "an embedding")
    dialog.get_by_role("button", name="Put fig_style into the prompt").click()
    expect(dialog).to_have_count(0)
    expect(prompt_of(page)).to_have_value("a fig fig_style")
    made = drawn(studio, page)
    assert [one["token"] for one in made["parameters"]["embeddings"]] == ["fig_style"]

    dialog = open_manager(page)
    dialog.get_by_role("button", name="Embeddings").click()
    remove.click()
    sure = page.get_by_role("dialog", name="Remove fig_style?")
    sure.get_by_role("button", name="Delete").click()
    expect(remove).to_have_count(0)
    assert words.get("/api/v1/embeddings").json()["items"] == []
    dialog.get_by_role("button", name="Close").click()
    # The form no longer means it: the word is a word like any other.
    assert not drawn(studio, page)["parameters"].get("embeddings")


def test_it_holds_in_spanish_on_a_phone(
    studio: Studio, words: httpx2.Client, open_page: OpenPage
) -> None:
    long = "a" * 60
    words.put(f"{WORDS}/styles/{long}", json={"prompt": "x" * 300}).raise_for_status()
    phone: dict[str, Any] = {
        "viewport": {"width": 360, "height": 740}, "locale": "es-ES", "reduced_motion": "reduce"
    }  # fmt: skip
    page = open_page(studio.url, draft={"styles": [long]}, **phone)
    title = "Estilos y comodines propios"
    page.locator("fieldset.styles").get_by_role("button", name=title).click()
    dialog = page.get_by_role("dialog", name=title)
    expect(row(dialog, long)).to_be_visible()
    for shown in (page.locator("html"), dialog, page.locator(".composer-fields")):
        assert shown.evaluate("(one) => one.scrollWidth <= one.clientWidth")
    dialog.get_by_role("button", name="Embeddings").click()
    expect(dialog.get_by_role("button", name="Añadir el embedding")).to_be_disabled()
    check_accessibility(page, "embeddings in Spanish")
