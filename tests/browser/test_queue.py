"""What waits: a queue that is paused, and what is told of it and of other things on each view."""

from __future__ import annotations

import re

import httpx2
import pytest
from playwright.sync_api import expect

from testkit.browser import OpenPage, Studio, Watch

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def undecided(studio: Studio) -> str:
    """A content for which nobody chose a size."""
    answer = httpx2.post(
        f"{studio.url}/api/v1/content/generate",
        json={"prompt": "a fig without a size", "steps": 4},
        headers={"Prefer": "respond-async"},
    )
    return str(answer.raise_for_status().json()["id"])


def test_a_paused_queue_is_told_on_every_view_and_goes_on_from_there(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url)
    httpx2.post(f"{studio.url}/api/v1/queue/pause").raise_for_status()
    try:
        page.get_by_label("Prompt", exact=True).fill("a fig that waits")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_text("The queue is paused", exact=True).first).to_be_visible()
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
