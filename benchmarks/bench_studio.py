"""How long the page takes on a phone: Fast 3G, a four times slower processor, a full library.

Starts the backend and a worker with the small model, draws a few pictures, and opens the page in
Chromium with an empty cache and then again. The floor beside it is the same line's time for an
answer of a few bytes: what no page can beat. The last line is JSON: for each view the seconds until
something is painted, until the form (or the gallery's tiles) can be used, until the whole page's
script has taken over, until the first picture, and the bytes that came over the line by kind. That
the form can be used is proved: `sent_s` is when the request of a prompt left that was written, with
a shape chosen and the button pressed, as soon as the form was seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, sync_playwright

from scripts.stack import build_stack, free_port, running

# What Chromium's own tools call Fast 3G, and a phone of the middle class.
LINE = {
    "offline": False,
    "latency": 562.5,
    "downloadThroughput": 1.6e6 / 8 * 0.9,
    "uploadThroughput": 750e3 / 8 * 0.9,
}
SLOWER_CPU = 4
WAIT_MS = 60_000
KINDS = {"script": "script", "stylesheet": "style", "font": "font", "image": "pictures"}
# View: (what is usable, what is the first picture).
VIEWS = {
    "create": (".composer textarea", ".strip .thumb img"),
    "gallery": ("main .thumb", "main .thumb img"),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=24, help="drawn before the page is opened")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is needed: apt-get install chromium", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="bench-studio-"))
    stack = build_stack(port=free_port(), worker_port=free_port(), data_dir=folder / "data")
    try:
        with running(stack), sync_playwright() as playwright:
            draw(stack.backend_url, options.pictures)
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            result = {
                "line": "Fast 3G, 4x slower CPU",
                "pictures": options.pictures,
                "floor_s": floor(browser, stack.backend_url),
                **{view: measure(browser, stack.backend_url, view) for view in VIEWS},
                "pressed_at_once": pressed_at_once(browser, stack.backend_url),
            }
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    line = json.dumps(result)
    if options.json is not None:
        options.json.write_text(line + "\n")
    print(line)
    return 0


def draw(url: str, count: int) -> None:
    """`count` finished pictures, by one batch."""
    with httpx2.Client(base_url=f"{url}/api/v1", timeout=60) as http:
        prompts = [f"a fox number {number}, blue background" for number in range(count)]
        body = {"prompts": prompts, "steps": 4}
        batch = http.post("/content/batch", json=body).raise_for_status().json()["batch_id"]
        while True:
            now = http.get(f"/content/batch/{batch}").raise_for_status().json()
            if not now["queued"] and not now["running"]:
                break
            time.sleep(1)


def throttled(context: BrowserContext) -> tuple[Page, CDPSession]:
    """A page of `context` on the slow line."""
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    tools = context.new_cdp_session(page)
    tools.send("Network.enable")
    tools.send("Network.emulateNetworkConditions", LINE)
    tools.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER_CPU})
    return page, tools


def floor(browser: Browser, url: str) -> float:
    """Seconds for an answer of a few bytes on the same line."""
    context = browser.new_context()
    page, _ = throttled(context)
    begun = time.monotonic()
    page.goto(f"{url}/health/live")
    seconds = time.monotonic() - begun
    context.close()
    return round(seconds, 2)


def measure(browser: Browser, url: str, view: str) -> dict[str, Any]:
    """The view with an empty cache, and once more with what the first time left."""
    context = browser.new_context(viewport={"width": 412, "height": 915}, has_touch=True)
    result = {name: opened(context, url, view) for name in ("first", "again")}
    context.close()
    return result


def pressed_at_once(browser: Browser, url: str) -> dict[str, Any]:
    """The form of a first visit, used as soon as it is seen; fails where anything of it is lost."""
    context = browser.new_context(viewport={"width": 412, "height": 915}, has_touch=True)
    page, _ = throttled(context)
    begun = time.monotonic()
    page.goto(f"{url}/#/create", wait_until="commit")
    page.locator(VIEWS["create"][0]).first.wait_for()
    usable_s = time.monotonic() - begun
    with page.expect_request("**/content/generate") as request:
        page.locator("textarea.prompt").fill("a fox")
        page.get_by_role("button", name="2:3", exact=True).click()
        page.locator("textarea.prompt").press("Control+Enter")
        pressed_s = time.monotonic() - begun
    sent_s = time.monotonic() - begun
    body: Any = request.value.post_data_json
    if body["prompt"] != "a fox" or body["width"] >= body["height"]:
        raise RuntimeError(f"what was written or chosen is lost: {body}")
    context.close()
    times = {"usable_s": usable_s, "pressed_s": pressed_s, "sent_s": sent_s}
    return {name: round(seconds, 2) for name, seconds in times.items()}


def opened(context: BrowserContext, url: str, view: str) -> dict[str, Any]:
    """One opening: seconds and kilobytes."""
    page, tools = throttled(context)
    kinds: dict[str, str] = {}
    kilobytes: Counter[str] = Counter()

    def on_answer(event: dict[str, Any]) -> None:
        kind = KINDS.get(event["type"].lower())
        is_json = "json" in event["response"]["mimeType"]
        kinds[event["requestId"]] = kind or ("json" if is_json else "other")

    def on_end(event: dict[str, Any]) -> None:
        kilobytes[kinds.get(event["requestId"], "other")] += event["encodedDataLength"] / 1000

    tools.on("Network.responseReceived", on_answer)
    tools.on("Network.loadingFinished", on_end)
    usable, picture = VIEWS[view]
    begun = time.monotonic()
    page.goto(f"{url}/#/{view}", wait_until="commit")
    page.locator(usable).first.wait_for()
    usable_s = time.monotonic() - begun
    page.locator("html.live").wait_for(state="attached")
    live_s = time.monotonic() - begun
    page.locator(picture).first.wait_for()
    while not page.evaluate(f"document.querySelector({picture!r})?.naturalWidth > 0"):
        page.wait_for_timeout(20)
    picture_s = time.monotonic() - begun
    page.wait_for_timeout(3000)  # the stream of events stays open: there is no end to wait for
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    page.close()
    return {
        "painted_s": round(paint / 1000, 2),
        # In the document is not yet on the screen.
        "usable_s": round(max(usable_s, paint / 1000), 2),
        "live_s": round(live_s, 2),
        "picture_s": round(picture_s, 2),
        "kB": {kind: round(size, 1) for kind, size in sorted(kilobytes.items())},
    }


if __name__ == "__main__":
    sys.exit(main())
