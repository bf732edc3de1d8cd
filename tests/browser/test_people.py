"""Who uses it and how: keys and tenants, the keyboard, a phone, the dark, Spanish, axe-core."""

from __future__ import annotations

import re

import httpx2
import pytest
from playwright.sync_api import Page, expect

from testkit.browser import OpenPage, Studio, Watch, check_accessibility

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Each view, and what the tab's title calls it.
VIEWS = {
    "create": "Create",
    "gallery": "Gallery",
    "loras": "LoRAs",
    "avatars": "Avatars",
    "grid": "X/Y grid",
    "batches": "Batches",
    "costs": "Costs",
    "verify": "Check",
    "compare": "Compare",
    "more": "More",
}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_a_wrong_key_is_refused_and_a_right_one_leads_from_the_first_run_to_a_picture(
    keyed: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("401")
    first, second = keyed.make_key("first"), keyed.make_key("second")
    page = open_page(keyed.url, draft={"steps": 8})
    sign_in(page, "sdxl_wrong")
    expect(page.get_by_text("This key is not valid.")).to_be_visible()
    sign_in(page, first)
    expect(page.get_by_role("heading", name="Make the first picture")).to_be_visible()
    assert first not in page.evaluate("() => JSON.stringify(localStorage) + document.cookie")

    page.get_by_role("button", name="a red apple, white background").click()
    frame = page.locator(".stage .frame")
    expect(frame).to_have_attribute("data-status", "succeeded")
    expect(frame.locator("img")).to_be_visible()
    drawn = page.locator(".strip .thumb").get_attribute("data-id")

    page.get_by_label("Prompt", exact=True).fill("my secret")

    page.get_by_role("button", name="Sign out").click()
    sign_in(page, second)
    expect(page.get_by_role("heading", name="Make the first picture")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
    assert "my secret" not in page.evaluate("() => JSON.stringify(localStorage)")
    watch.expected.append("404")
    page.goto(f"{keyed.url}/#/content/{drawn}")
    expect(page.get_by_text("It is not there any more.")).to_be_visible()
    page.goto(f"{keyed.url}/#/gallery")
    expect(page.get_by_role("heading", name="No pictures yet")).to_be_visible()

    # A key that is made invalid meanwhile: who it was is seen before, and why it ends after.
    expect(page.locator(".who")).to_have_text("second")
    own = {"Authorization": f"Bearer {second}"}
    keys = httpx2.get(f"{keyed.url}/api/v1/keys", headers=own).json()["items"]
    current = next(one["id"] for one in keys if one["current"])
    assert httpx2.delete(f"{keyed.url}/api/v1/keys/{current}", headers=own).status_code == 204
    page.goto(f"{keyed.url}/#/costs")
    expect(page.get_by_text("Your API key is not valid any more.")).to_be_visible()


@pytest.mark.long
def test_everything_of_the_main_way_works_with_the_keyboard_alone(
    studio: Studio, open_page: OpenPage
) -> None:
    studio.draw("an older apple")
    page = open_page(studio.url)
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("an apple by hand")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".report")).to_contain_text("an apple by hand")
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    page.keyboard.press("Escape")
    # The last results are one stop of the Tab key.
    expect(page.locator(".strip .thumb[tabindex='0']")).to_have_count(1)
    page.locator("main").focus()
    page.keyboard.press("g")
    page.keyboard.press("g")
    grid = page.locator(".virtual-grid")
    expect(grid.locator(".thumb").first).to_be_visible()
    grid.locator(".thumb[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    expect(grid.locator("[aria-posinset='2'] .thumb")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator(".report")).to_contain_text("an apple by hand")
    expect(page.locator(".actions:not([inert])")).to_be_visible()
    page.keyboard.press("s")
    star = page.get_by_role("button", name="Give a star")
    expect(star).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("s")
    expect(star).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".report")).not_to_contain_text("an apple by hand")
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("#/gallery$"))
    page.keyboard.press("?")
    listed = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(listed).to_be_visible()
    # Switched off, single keys do nothing: whoever dictates writes many of them.
    listed.get_by_label("Single keys act as shortcuts").uncheck()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    for key in "gc?":
        page.keyboard.press(key)
    assert str(page.evaluate("location.hash")).startswith("#/gallery")
    page.get_by_role("button", name="Keyboard shortcuts").click()
    listed.get_by_label("Single keys act as shortcuts").check()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    for key in "gc":
        page.keyboard.press(key)
    expect(page).to_have_url(re.compile("#/create$"))


@pytest.mark.long
def test_what_is_chosen_is_seen_where_the_system_chooses_the_colours(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"width": None, "height": None}, forced_colors="active")
    style = "(e) => [getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineWidth]"
    for chosen in (".shapes [aria-pressed='true']", ".rail [aria-current]"):
        assert page.locator(chosen).first.evaluate(style) == ["solid", "3px"], chosen
    track = page.locator("input[type=range]").first
    colours = track.evaluate(
        "(e) => [e, e.parentElement].map((o) => getComputedStyle(o).backgroundColor)"
    )
    assert colours[0] != colours[1]


@pytest.mark.parametrize("colours", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_axe_finds_nothing_on_any_view(studio: Studio, open_page: OpenPage, colours: str) -> None:
    made = studio.draw("an accessible apple")
    page = open_page(studio.url, color_scheme=colours, reduced_motion="reduce")
    one = made["id"]
    others = {f"content/{one}": "Picture", f"compare/{one}/{one}": "Compare"}
    for view, title in {**VIEWS, **others, "nothing": "There is nothing here."}.items():
        page.goto(f"{studio.url}/#/{view}")
        expect(page).to_have_title(re.compile(rf"(^|· ){re.escape(title)} · Studio$"))
        expect(page.locator("main h1, main h2").first).to_be_attached()
        expect(page.locator("main .loading")).to_have_count(0)
        check_accessibility(page, f"{view} ({colours})")
    page.goto(f"{studio.url}/#/avatars")
    page.get_by_role("button", name="New avatar").click()
    check_accessibility(page, f"dialog ({colours})")


@pytest.mark.long
def test_axe_finds_nothing_at_the_gate(keyed: Studio, open_page: OpenPage) -> None:
    keyed.make_key("gate")
    page = open_page(keyed.url)
    expect(page.get_by_label("API key")).to_be_focused()

    check_accessibility(page, "sign-in")


def test_axe_itself_would_complain(studio: Studio, open_page: OpenPage) -> None:
    page = open_page(studio.url)
    expect(page.locator("main")).to_be_visible()
    page.evaluate("() => document.querySelector('main').append(document.createElement('button'))")

    with pytest.raises(AssertionError, match="button-name"):
        check_accessibility(page, "control")


@pytest.mark.long
def test_on_a_phone_nothing_is_wider_than_the_screen(studio: Studio, open_page: OpenPage) -> None:
    made = studio.draw("a small apple")
    page = open_page(studio.url, **PHONE)
    for view in (*VIEWS, f"content/{made['id']}", f"compare/{made['id']}/{made['id']}"):
        page.goto(f"{studio.url}/#/{view}")
        expect(page.locator("main h1, main h2").first).to_be_attached()
        widest = page.evaluate(
            "() => Math.max(document.body.scrollWidth, document.querySelector('main').scrollWidth)"
        )
        assert widest <= 390, view
    page.goto(f"{studio.url}/#/create")
    # A phone zooms into fields of smaller letters.
    letters = page.locator(
        "input:not([type=range], [type=checkbox]), select, textarea"
    ).evaluate_all("(all) => all.map((e) => parseFloat(getComputedStyle(e).fontSize))")
    assert min(letters) >= 16
    page.get_by_label("Prompt", exact=True).fill("an apple on a phone")
    page.get_by_role("button", name="Generate", exact=False).first.tap()
    expect(page.locator(".report")).to_contain_text("an apple on a phone")
    frame = page.locator(".stage .frame")
    expect(frame).to_be_in_viewport()
    expect(frame).to_have_attribute("data-status", "succeeded")
    page.get_by_role("link", name="More").tap()
    page.get_by_role("link", name="X/Y grid").tap()
    expect(page.get_by_role("heading", name="X/Y grid")).to_be_visible()


@pytest.mark.long
def test_the_browsers_language_is_spoken_until_another_is_chosen(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, locale="es-MX")
    expect(page.get_by_role("button", name="Generar", exact=False).first).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "es")
    page.get_by_label("Idioma").first.select_option("en")
    expect(page.get_by_role("button", name="Generate", exact=False).first).to_be_visible()
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


@pytest.mark.long
def test_a_chosen_theme_overrides_the_system(studio: Studio, open_page: OpenPage) -> None:
    page = open_page(studio.url, color_scheme="light")
    background = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_label("Colours").first.select_option("dark")

    assert page.evaluate(background) != light
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
