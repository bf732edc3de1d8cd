"""What waits, and what many are asked for at once: a paused queue, grids over all their axes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from testkit.browser import OpenPage, Studio, Watch, fitting_lora

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]


def undecided(studio: Studio) -> str:
    """A content for which nobody chose a size."""
    answer = httpx2.post(
        f"{studio.url}/api/v1/content/generate",
        json={"prompt": "a fig without a size", "steps": 4},
        headers={"Prefer": "respond-async"},
    )
    return str(answer.raise_for_status().json()["id"])


@pytest.fixture
def upload(studio: Studio) -> Iterator[Callable[[str], str]]:
    """Puts a LoRA into the library and gives its id; other tests do not find it there."""
    models = f"{studio.url}/api/v1/loras/models"
    ids = []

    def upload_(name: str) -> str:
        data = fitting_lora(studio.worker_url, trigger=name[:20])
        files = {"file": ("x.safetensors", data)}
        answer = httpx2.post(f"{models}/upload", files=files, data={"name": name}, timeout=60)
        ids.append(str(answer.raise_for_status().json()["id"]))
        return ids[-1]

    yield upload_
    for one in ids:
        httpx2.delete(f"{models}/{one}").raise_for_status()


def test_a_paused_queue_is_told_on_every_view_and_goes_on_from_there(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url)
    httpx2.post(f"{studio.url}/api/v1/queue/pause").raise_for_status()
    try:
        page.get_by_label("Prompt", exact=True).fill("a fig that waits")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_text("The queue is paused", exact=True).first).to_be_visible()
        # This page did not pause it, and offers to go on all the same.
        expect(page.get_by_role("status").get_by_role("button", name="Resume")).to_be_visible()
        page.get_by_role("button", name=re.compile(r"^\d+ in progress$")).click()
        dialog = page.get_by_role("dialog", name="In progress")
        expect(dialog.get_by_role("button", name="Resume")).to_be_visible()
        dialog.get_by_role("button", name="Close").click()
        # Nothing of it is decided yet.
        waiting = undecided(studio)
        other = page.context.new_page()
        other.goto(f"{studio.url}/#/content/{waiting}")
        expect(other.get_by_text("The model’s own size")).to_be_visible()
        other.goto(f"{studio.url}/#/costs")
        other.get_by_role("status").get_by_role("button", name="Resume").click()
        expect(other.get_by_text("The queue is paused")).to_have_count(0)
    finally:
        httpx2.post(f"{studio.url}/api/v1/queue/resume").raise_for_status()
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    expect(page.get_by_text("The queue is paused")).to_have_count(0)


def test_what_went_wrong_in_one_view_is_not_told_in_the_next(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("status of 500")
    made = studio.draw("a fig with a star")
    page = open_page(studio.url, path=f"#/content/{made['id']}")
    page.route("**/content/star", lambda route: route.fulfill(status=500, body="{}"))
    page.locator(".actions").get_by_role("button", name="Star").click()
    expect(page.locator(".notice.error")).to_be_visible()
    page.wait_for_timeout(1100)  # sooner, it would be taken for told on the way to the next view
    page.goto(f"{studio.url}/#/costs")

    expect(page.get_by_role("heading", name="Costs")).to_be_visible()
    expect(page.locator(".notice")).to_have_count(0)


def test_what_waits_is_cancelled_all_at_once_and_a_grid_and_a_batch_alone(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"prompt": "a fig that is not wanted"})
    httpx2.post(f"{studio.url}/api/v1/queue/pause").raise_for_status()
    try:
        ids = []
        for _ in range(2):
            with page.expect_response("**/content/generate") as answer:
                page.get_by_role("button", name="Generate", exact=False).first.click()
            ids.append(answer.value.json()["id"])
        # Another test's contents may still be under way here.
        page.get_by_role("button", name=re.compile(r"^\d+ in progress$")).click()
        dialog = page.get_by_role("dialog", name="In progress")
        rows = dialog.locator(".queue .thumb")
        for one in ids:
            expect(dialog.locator(f".queue .thumb[data-id='{one}']")).to_be_visible()
        # In the order in which they will be drawn.
        shown = rows.evaluate_all("(all) => all.map((e) => e.dataset.id)")
        assert [one for one in shown if one in ids] == ids
        dialog.get_by_role("button", name="Cancel all").click()
        # With nothing left to show it closes.
        expect(dialog).to_have_count(0)
        assert {studio.content(one)["status"] for one in ids} == {"cancelled"}

        page.goto(f"{studio.url}/#/grid")
        page.reload()
        page.get_by_role("button", name="Generate the grid").click()
        cells = page.locator(".xy .thumb.queued")
        expect(cells).to_have_count(9)
        page.get_by_role("button", name="Cancel the rest").click()
        expect(page.locator(".xy .thumb.cancelled")).to_have_count(9)
        expect(page.get_by_role("button", name="Repeat")).to_be_visible()

        page.goto(f"{studio.url}/#/batches")
        page.get_by_label("Prompts").fill("a fig\nanother fig")
        page.get_by_role("button", name="Generate them all").click()
        card = page.locator(".card").first
        expect(card).to_contain_text("2 waiting")
        expect(card).to_contain_text("another fig")
        card.get_by_role("button", name="Cancel the rest").click()
        expect(card).to_contain_text("2 cancelled")
        card.get_by_role("button", name="Repeat").click()
        expect(card).to_contain_text("2 waiting")
        card.get_by_role("button", name="Cancel the rest").click()
        expect(card).to_contain_text("2 cancelled")
    finally:
        httpx2.post(f"{studio.url}/api/v1/queue/resume").raise_for_status()


def test_a_grid_over_words_and_sizes_then_over_which_lora_and_its_scale(
    studio: Studio, open_page: OpenPage, upload: Callable[[str], str], watch: Watch
) -> None:
    tail = ", studio light" + ", soft shadow and sharp focus" * 14
    long_name = "sdxl_character-sheet_watercolour_" + "v3_final_" * 12
    ink, _ = upload("a grid's ink"), upload(long_name)
    draft = {"prompt": f"a red apple{tail}", "loras": [{"id": ink, "scale": 0.7}]}
    page = open_page(studio.url, path="#/grid", draft=draft)
    x, y = page.get_by_role("group", name="Across (X)"), page.get_by_role("group", name="Down (Y)")
    start = page.get_by_role("button", name="Generate the grid")

    # A lost line is told by the banner, and by nothing that stays after it.
    watch.expected.append("ERR_FAILED")
    page.route("**/content/batch", lambda route: route.abort())
    with page.expect_event("requestfailed"):
        start.click()
    page.unroute("**/content/batch")
    expect(start).to_be_enabled()
    expect(page.locator(".field-error")).to_have_count(0)
    expect(page.locator(".banner")).to_have_count(0)

    x.get_by_role("combobox").select_option("words")
    # Nothing is found fault with before anything is written.
    expect(x.locator(".field-error")).to_have_count(0)
    words = x.get_by_label("Values")
    words.fill("pear; fig")
    expect(x.locator(".field-error")).to_have_text("“pear” is not in the prompt.")
    expect(start).to_be_disabled()
    words.fill("red apple; green pear")
    y.get_by_role("combobox").select_option("size")
    for ratio in ("1:1", "2:3", "3:2", "9:16"):
        chosen = y.get_by_role("button", name=ratio, exact=True)
        was = chosen.get_attribute("aria-pressed") == "true"
        if was != (ratio in ("1:1", "9:16")):
            chosen.click()
    expect(page.locator(".expected")).to_contain_text("4 pictures")
    # What is written for a grid is there again after a look at the form.
    page.goto(f"{studio.url}/#/create")
    page.goto(f"{studio.url}/#/grid")
    expect(words).to_have_value("red apple; green pear")
    with page.expect_request("**/content/batch") as request:
        start.click()
    body: Any = request.value.post_data_json
    assert body["grid"]["x"] == {"parameter": "words", "values": ["red apple", "green pear"]}
    expect(page.locator(".xy td img:not(.preview)")).to_have_count(4)
    expect(page.locator(".xy th[scope=col]")).to_have_text(["red apple", "green pear"])
    ids = [thumb.get_attribute("data-id") or "" for thumb in page.locator(".xy .thumb").all()]
    made = [studio.content(one) for one in ids]
    assert [one["prompt"].removesuffix(tail) for one in made] == ["a red apple", "a green pear"] * 2
    sizes = [f"{one['parameters']['width']}x{one['parameters']['height']}" for one in made]
    assert sizes == [size for size in body["grid"]["y"]["values"] for _ in range(2)]
    assert len(set(sizes)) == 2

    page.goto(f"{studio.url}/#/grid")
    y.get_by_role("combobox").select_option("which_lora")
    for box in y.get_by_role("checkbox", checked=True).all()[::-1]:
        box.uncheck()
    expect(y.locator(".field-error")).to_have_text("Give at least one value.")
    for name in ("None", "a grid's ink", long_name):
        y.get_by_role("checkbox", name=name).check()
    x.get_by_role("combobox").select_option("lora")
    x.get_by_label("Values").fill("0.5")
    start.click()
    expect(page.locator(".xy td img:not(.preview)")).to_have_count(3)
    rows = page.locator(".xy th[scope=row]")
    expect(rows).to_have_text(["None", "a grid's ink", long_name])
    # A long name takes no more room than others do.
    assert rows.last.evaluate("(one) => one.offsetWidth <= 200 && one.offsetHeight <= 210")
    ids = [thumb.get_attribute("data-id") or "" for thumb in page.locator(".xy .thumb").all()]
    used = [[(use["name"], use["scale"]) for use in studio.content(one)["loras"]] for one in ids]
    assert used == [[], [("a grid's ink", 0.5)], [(long_name, 0.5)]]
    # A cell that is deleted leaves its place empty, in this browser and in any other.
    httpx2.delete(f"{studio.url}/api/v1/content/{ids[1]}").raise_for_status()
    other = open_page(studio.url, path=page.url.removeprefix(f"{studio.url}/"))
    cells = other.locator(".xy tbody td")
    expect(cells.nth(2).locator(f".thumb[data-id='{ids[2]}']")).to_be_visible()
    expect(cells.nth(1).locator(".thumb")).to_have_count(0)
