"""Batches, grids, compare, costs, and a gallery with thousands of pictures."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from testkit.browser import OpenPage, Studio, fill_gallery

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]
MANY = 5000


def test_a_batch_draws_every_prompt_and_the_gallery_shows_only_it(
    studio: Studio, open_page: OpenPage
) -> None:
    studio.draw("not of the batch")
    page = open_page(studio.url, path="#/batches")
    page.get_by_label("Prompts").fill("one pear\ntwo pears")
    page.get_by_label("Of each").fill("2")
    page.get_by_role("button", name="Generate them all").click()
    card = page.locator(".card").first

    expect(card).to_contain_text("4 pictures")
    expect(card).to_contain_text("4 finished")
    card.get_by_role("button", name="Show in the gallery").click()
    expect(page.locator(".virtual-grid .thumb img")).to_have_count(4)
    today = "new Intl.DateTimeFormat('en-GB', {weekday: 'long', day: 'numeric', month: 'long'})"
    expect(page.locator(".gallery-day")).to_have_text(page.evaluate(f"() => {today}.format()"))
    page.get_by_role("button", name="One batch only").click()
    expect(page.locator(".virtual-grid .thumb img")).not_to_have_count(4)


def test_batches_are_listed_for_every_browser_of_the_same_person_and_older_ones_on_demand(
    studio: Studio, open_page: OpenPage
) -> None:
    for number in range(22):
        studio.batch(f"pear number {number}")
    # Each page is a browser of its own, which has made none of them.
    page = open_page(studio.url, path="#/batches")

    expect(page.locator(".card")).to_have_count(20)
    page.get_by_role("button", name="Older batches").click()
    expect(page.locator(".card").nth(21)).to_be_visible()
    # What is made now comes first.
    page.get_by_label("Prompts").fill("one plum\ntwo plums\nthree plums")
    page.get_by_role("button", name="Generate them all").click()
    expect(page.locator(".card").first).to_contain_text("3 pictures")


def test_a_grid_is_labelled_and_downloads_as_one_picture(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, path="#/grid", draft={"prompt": "a plum"})
    page.get_by_label("Across (X)").last.select_option("cfg")
    page.get_by_label("Values").first.fill("2..6 x2")
    page.get_by_label("Down (Y)").last.select_option("seed")
    page.get_by_label("Values").last.fill("7, 8")
    page.get_by_role("button", name="Generate the grid").click()

    expect(page.locator(".xy td img:not(.preview)")).to_have_count(4)
    expect(page.locator(".xy th[scope=col]")).to_have_text(["2", "6"])
    expect(page.locator(".xy th[scope=row]")).to_have_text(["7", "8"])
    ids = [thumb.get_attribute("data-id") or "" for thumb in page.locator(".xy .thumb").all()]
    made = [studio.content(one)["parameters"] for one in ids]
    assert [(one["seed"], one["cfg"]) for one in made] == [(7, 2), (7, 6), (8, 2), (8, 6)]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as one picture").click()
    picture = Image.open(io.BytesIO(download.value.path().read_bytes()))
    assert picture.width > 2 * 256
    assert picture.height > 2 * 256

    # Another browser, or this one without what it kept, shows it too.
    other = open_page(studio.url, path="#/grid")
    other.get_by_role("link", name="Guidance (CFG) × Seed").first.click()
    expect(other.locator(".xy td img")).to_have_count(4)
    expect(other.locator(".xy th[scope=col]")).to_have_text(["2", "6"])
    other.get_by_role("button", name="Repeat").click()
    expect(other).not_to_have_url(page.url)
    expect(other.locator(".xy td img:not(.preview)")).to_have_count(4)


def test_two_pictures_are_compared_by_a_slider_that_the_keyboard_moves(
    studio: Studio, open_page: OpenPage
) -> None:
    first = studio.draw("a fig", seed=1)
    second = studio.draw("a fig", seed=2)
    page = open_page(studio.url, path="#/gallery")
    page.get_by_role("button", name="Select").click()
    page.locator(f"[data-id='{first['id']}']").click()
    page.locator(f"[data-id='{second['id']}']").click()
    page.get_by_role("button", name="Compare").click()

    slider = page.get_by_role("slider", name="Slider")
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"^0"))
    slider.press("ArrowRight")
    expect(page.locator(".over")).to_have_attribute("style", re.compile(r"99\.5%"))
    expect(page.locator("table tbody tr")).to_have_text(["Seed12"])
    page.get_by_role("button", name="Side by side").click()
    expect(page.locator(".beside img")).to_have_count(2)


def test_costs_are_shown_by_day_and_by_lora(studio: Studio, open_page: OpenPage) -> None:
    studio.draw("a costly quince")
    page = open_page(studio.url, path="#/costs")

    expect(page.get_by_role("heading", name="By day (UTC)")).to_be_visible()
    expect(page.get_by_role("heading", name="By LoRA")).to_be_visible()
    assert page.locator(".columns > div").count() == 30
    page.get_by_label("Time span").select_option("7")
    expect(page.locator(".columns > div")).to_have_count(7)
    page.get_by_role("button", name="Pictures").click()
    drawn = page.locator(".tiles div", has_text="Pictures").locator("dd").inner_text()
    assert int(drawn) >= 1
    # Those without a LoRA have a row of their own: the rows add up.
    expect(page.locator(".ranking li", has_text=re.compile("^None")).first).to_be_visible()


def test_thousands_of_pictures_are_scrolled_without_losing_one(
    keyed: Studio, open_page: OpenPage
) -> None:
    fill_gallery(keyed, "archive", MANY)
    key = keyed.make_key("archive")
    page = open_page(keyed.url, path="#/gallery")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    grid = page.locator(".virtual-grid")
    expect(grid.locator(".thumb img").first).to_be_visible()
    page.get_by_label("Size of the thumbnails").fill("96")
    in_document = 0
    seen: dict[int, str] = {}
    # As a hurried person scrolls: by whole windows, looking at what is there each time.
    for _ in range(2000):
        rows = grid.evaluate(
            """(grid) => { const main = grid.closest('main');
            const rows = [...grid.children].map((c) => [Number(c.ariaPosInSet),
              c.querySelector('[data-id]')?.dataset.id, !!c.querySelector('img')]);
            main.scrollTop += main.clientHeight - 40;
            return [rows, main.scrollTop + main.clientHeight >= main.scrollHeight - 2]; }"""
        )
        in_document = max(in_document, len(rows[0]))
        for place, content_id, has_picture in rows[0]:
            assert has_picture, f"number {place} shows nothing"
            assert seen.setdefault(place, content_id) == content_id, f"number {place} changed"
        if rows[1] and len(seen) == MANY:
            break
        page.wait_for_timeout(15)

    assert sorted(seen) == list(range(1, MANY + 1))
    assert len(set(seen.values())) == MANY
    assert in_document < 300
    last = page.locator(f"[data-id='{seen[MANY]}']")
    # As on a slow computer: what waits for a picture on the screen comes late.
    page.evaluate(
        "() => { const at = window.setTimeout;"
        " window.setTimeout = (what, ms = 0, ...rest) => at(what, ms + 200, ...rest); }"
    )
    last.click()
    expect(page.locator(".report")).to_contain_text("picture 0")
    page.wait_for_timeout(500)
    page.go_back()
    expect(page.locator(f"[data-id='{seen[MANY]}']")).to_be_in_viewport()
