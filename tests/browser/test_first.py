"""The first answer's form: used before the page's script is there, and nothing of that is lost."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import APIResponse, Browser, Page, Route, expect

from testkit.browser import WAIT_MS, OpenPage, Studio, Watch

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCRIPT = "**/assets/first-*.js"


@pytest.fixture
def page(browser: Browser, watch: Watch) -> Page:
    """A first visit: nothing is kept on the device."""
    context = browser.new_context(viewport={"width": 412, "height": 915}, locale="en-GB")
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    watch.attach(page)
    return page


def hold_script(page: Page) -> list[Route]:
    held: list[Route] = []
    page.route(SCRIPT, lambda route: held.append(route))
    return held


def release(page: Page, held: list[Route]) -> None:
    while not held:
        page.wait_for_timeout(20)
    held.pop().continue_()


def test_what_is_written_chosen_and_pressed_before_the_script_is_done_when_it_is_there(
    studio: Studio, page: Page
) -> None:
    held = hold_script(page)
    page.goto(studio.url, wait_until="commit")
    # Nobody types into what is not to be seen yet; Chromium drops keys that come before.
    while not page.evaluate("performance.getEntriesByName('first-contentful-paint').length"):
        page.wait_for_timeout(20)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.press_sequentially("a fox")
    field = prompt.element_handle()
    page.get_by_label("Negative prompt").fill("a dog")
    page.get_by_role("button", name="2:3", exact=True).click()
    page.get_by_label("Pictures", exact=True).select_option("2")
    page.get_by_label("Steps (exact value)").fill("4")
    prompt.focus()
    prompt.press("ArrowLeft")
    page.get_by_role("button", name="Generate", exact=False).first.click()
    prompt.focus()
    assert page.locator("html.live").count() == 0, "the script is held back"

    with page.expect_request("**/content/generate") as request:
        release(page, held)
    body: Any = request.value.post_data_json
    assert (body["prompt"], body["negative_prompt"]) == ("a fox", "a dog")
    assert (body["num_images"], body["steps"]) == (2, 4)
    assert body["width"] < body["height"]
    # The same field, with the caret where it was: typing goes on, and so does taking back.
    expect(prompt).to_be_focused()
    assert field.evaluate("(one) => one.isConnected && one === document.activeElement")
    assert field.evaluate("(one) => one.selectionStart") == 4
    page.keyboard.type("XX")
    expect(prompt).to_have_value("a foXXx")
    page.context.close()


def test_a_draft_and_the_language_of_this_device_are_there_from_the_beginning(
    studio: Studio, page: Page
) -> None:
    page.goto(studio.url)
    page.locator("html.live").wait_for(state="attached")
    page.get_by_label("Prompt", exact=True).fill("a kept draft")
    held = hold_script(page)
    page.reload(wait_until="commit")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a kept draft")
    release(page, held)
    page.locator("html.live").wait_for(state="attached")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_label("Language").select_option("es")
    expect(page.locator("html")).to_have_attribute("lang", "es")
    # Chosen on the device, against what the browser asks for: no form in the other language.
    page.reload(wait_until="commit")
    page.locator("#lost").wait_for(state="attached")
    expect(page.locator("html.early")).to_have_count(0)
    expect(page.locator("textarea.prompt")).to_be_hidden()
    release(page, held)
    expect(page.get_by_label("Descripción negativa")).to_be_visible()
    page.context.close()


def test_what_stands_in_the_form_before_anything_listens_stays(studio: Studio, page: Page) -> None:
    held: list[Route] = []
    page.route("**/assets/early-*.js", lambda route: held.append(route))
    page.goto(studio.url, wait_until="commit")
    prompt = page.locator("textarea.prompt")
    prompt.wait_for(state="attached")
    prompt.evaluate("field => { field.value = 'written at once'; }")
    release(page, held)
    page.locator("html.live").wait_for(state="attached")
    expect(prompt).to_have_value("written at once")


def test_no_form_is_shown_where_another_view_or_the_sign_in_is_meant(
    studio: Studio, keyed: Studio, page: Page
) -> None:
    keyed.make_key("whoever")
    for url in (f"{studio.url}/#/gallery", keyed.url):
        held = hold_script(page)
        page.goto(url, wait_until="commit")
        page.locator("#lost").wait_for(state="attached")
        expect(page.locator("textarea.prompt")).to_be_hidden()
        release(page, held)
        page.locator("html.live").wait_for(state="attached")
        page.unroute(SCRIPT)
    expect(page.get_by_label("API key")).to_be_visible()
    page.context.close()


def test_a_script_that_does_not_come_is_told(studio: Studio, page: Page, watch: Watch) -> None:
    watch.expected.append("Failed to load resource")
    page.route(SCRIPT, lambda route: route.abort())
    page.goto(studio.url, wait_until="commit")

    expect(page.get_by_text("The page could not be loaded.")).to_be_visible()
    page.context.close()


def test_a_part_of_the_page_that_was_lost_on_the_way_comes_by_itself(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("ERR_FAILED")
    is_lost = True

    def answer(route: Route) -> None:
        if is_lost:
            route.abort()
        else:
            route.continue_()

    page = open_page(studio.url)
    page.route("**/assets/stage-*.js", answer)
    page.reload()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    is_lost = False
    expect(page.locator("section.stage")).to_be_visible()
    # What says that the page has taken over is no class of a part's: it would style the whole page.
    root = page.locator("html.live")
    expect(root).to_have_css("box-shadow", "none")
    expect(root).to_have_css("padding", "0px")


def test_a_picture_that_is_asked_for_while_the_first_list_is_read_is_among_the_recent_ones(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url)
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/api/v1/content?*", lambda route: held.append((route, route.fetch())))
    page.reload()
    page.get_by_label("Prompt", exact=True).fill("an apple before the list")
    while not held:
        page.wait_for_timeout(20)
    with page.expect_response("**/content/generate") as answer:
        page.get_by_role("button", name="Generate", exact=False).first.click()
    drawn = answer.value.json()["id"]
    for route, response in held:
        route.fulfill(response=response)
    page.unroute("**/api/v1/content?*")
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")

    expect(page.locator(f".strip .thumb.chosen[data-id='{drawn}']")).to_be_visible()
