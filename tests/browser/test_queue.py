"""What waits: a queue that is paused, and what is told of it and of other things on each view."""

from __future__ import annotations

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
