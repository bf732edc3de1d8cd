"""`make screenshots`: every view of the studio, light and dark, into docs/images.

Starts the backend and a worker with the small model on a database of its own, makes what the views
are to show, and takes the pictures with Chromium. Nothing of DATA_DIR is touched.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
from playwright.sync_api import Browser, Page, expect, sync_playwright

from scripts.stack import REPOSITORY, StackError, build_stack, free_port, running

OUTPUT = REPOSITORY / "docs" / "images"
LORAS = REPOSITORY / "demo_model" / "loras"
Colours = Literal["light", "dark"]
BOTH: tuple[Colours, ...] = ("light", "dark")
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
THINGS = (
    *("a red apple", "a pizza", "a panda", "a bicycle", "a cactus", "a rocket"),
    *("a teapot", "an octopus", "a guitar", "an owl", "a strawberry", "a fox"),
)
COLOURS = ("white", "yellow", "blue", "green")
STEPS = 12
# What the large pictures show, without and with a LoRA: a prompt as people write them.
SEED = 7
PROMPT = (
    "a cute panda, blue background, sitting upright and looking at the viewer, round face "
    "with soft fur and large dark eyes, gentle smile, paws resting on its belly, centred "
    "composition, studio portrait with a large softbox from the left and a faint rim light, "
    "even backdrop without texture, shallow depth of field, 85mm lens, subtle film grain, "
    "clean colours, highly detailed fur, children's book illustration quality, award-winning,"
    " masterpiece, sharp focus on the eyes"
)
NEGATIVE = (
    "blurry, lowres, watermark, signature, text, jpeg artefacts, deformed paws, extra limbs, "
    "cropped head, oversaturated, harsh shadows, cluttered background, frame, border"
)
LONG_NAME = "Line art, thin ink contours for children's books, version 2 (final), trained by Mara"
SEEN_IMAGES_ARE_THERE = """() => [...document.images].every((image) => {
  const box = image.getBoundingClientRect();
  const isSeen = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return !isSeen || (image.complete && image.naturalWidth > 0);
})"""


STYLES = {
    "Ink drawing": "ink drawing of {prompt}, fine lines, white paper",
    "Studio": "{prompt}, studio portrait, softbox, shallow depth of field",
}


class Maker:
    """Makes what the views show, over HTTP as any client does."""

    def __init__(self, base_url: str) -> None:
        self._http = httpx2.Client(base_url=f"{base_url}/api/v1", timeout=120)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a POST, which must succeed."""
        answer = self._http.post(path, json=body, headers={"Prefer": "wait=100"})
        answer.raise_for_status()
        result: dict[str, Any] = answer.json() if answer.content else {}
        return result

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """A finished content, however long a busy machine takes.

        Raises:
            StackError: it failed.
        """
        content = self.post("/content/generate", body)
        while content["status"] in ("queued", "running"):
            time.sleep(1)
            content = self._http.get(f"/content/{content['id']}").raise_for_status().json()
        if content["status"] != "succeeded":
            raise StackError(f"a picture was not drawn: {content['error']}")
        return content

    def patch(self, path: str, body: dict[str, Any]) -> None:
        """A PATCH, which must succeed."""
        self._http.patch(path, json=body).raise_for_status()

    def put(self, path: str, body: dict[str, Any]) -> None:
        """A PUT, which must succeed."""
        self._http.put(path, json=body).raise_for_status()

    def draw(self, thing: str, colour: str, **values: Any) -> dict[str, Any]:
        """A finished picture of a thing on a background."""
        prompt = f"{thing}, {colour} background"
        return self.generate({"prompt": prompt, "steps": STEPS, **values})

    def upload(self, path: Path, name: str = "") -> str:
        """The id of a LoRA that is in the library afterwards."""
        with path.open("rb") as file:
            answer = self._http.post(
                "/loras/models/upload",
                files={"file": (path.name, file)},
                data={"name": name or path.stem.replace("-", " ").capitalize(), "tags": "demo"},
            )
        answer.raise_for_status()
        return str(answer.json()["id"])


def make_all(base_url: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(finished contents, oldest first; ids of the LoRAs)."""
    maker = Maker(base_url)
    files = sorted(LORAS.glob("*.safetensors"))
    loras = [maker.upload(path, LONG_NAME if n == 1 else "") for n, path in enumerate(files)]
    maker.post(
        "/identities/avatars",
        {
            "name": "Mara",
            "base_prompt": "a fox, blue background",
            "lora_model_id": loras[0] if loras else None,
        },
    )
    contents = []
    for number, thing in enumerate(THINGS):
        uses = [{"lora_model_id": loras[0], "scale": 1.0}] if loras and number % 3 == 2 else []
        colour = COLOURS[number % len(COLOURS)]
        contents.append(maker.draw(thing, colour, seed=number + 1, loras=uses))
    body = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": STEPS, "seed": SEED}
    contents.append(maker.generate(body))
    uses = [{"lora_model_id": one, "scale": 0.7} for one in loras[:2]]
    contents.append(maker.generate({**body, "loras": uses, "num_images": 8}))
    starred = [contents[3]["images"][0]["id"], contents[-1]["images"][2]["id"]]
    maker.post("/content/star", {"image_ids": starred, "starred": True})
    maker.post("/boards", {"name": "Cover ideas, autumn"})
    for name, text in STYLES.items():
        maker.put(f"/words/styles/{name}", {"prompt": text, "negative_prompt": "text, logo"})
    maker.put("/words/wildcards/tone", {"lines": ["deep red", "pale green", "warm grey"]})
    for lora_id, content in zip(loras, contents[2:], strict=False):
        maker.patch(
            f"/loras/models/{lora_id}",
            {
                "cover_image_id": content["images"][0]["id"],
                "description": "Best between 0.6 and 0.9; weaker together with another style.",
            },
        )
    return contents, loras


@contextmanager
def opened(
    browser: Browser, url: str, colours: Colours, draft: dict[str, Any], **options: Any
) -> Iterator[Page]:
    """A page with a form that begins with `draft`."""
    context = browser.new_context(color_scheme=colours, **{"locale": "en-GB", **options})
    text = json.dumps(json.dumps(draft))
    context.add_init_script(
        f"localStorage.getItem('studio.draft') ?? localStorage.setItem('studio.draft', {text})"
    )
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


def shoot(page: Page, name: str, colours: Colours) -> None:
    """Write one picture once everything in sight is there."""
    page.wait_for_selector("main .loading", state="detached")
    while not page.evaluate(SEEN_IMAGES_ARE_THERE):
        page.wait_for_timeout(100)
    page.wait_for_timeout(400)  # the last fade-in
    page.screenshot(path=OUTPUT / f"studio-{name}-{colours}.png")
    print(f"  studio-{name}-{colours}.png", flush=True)


def shoot_first_run(browser: Browser, url: str) -> None:
    """The page before anything was made."""
    for colours in BOTH:
        with opened(browser, url, colours, {}, viewport=DESKTOP) as page:
            page.get_by_role("heading", name="Make the first picture").wait_for()
            shoot(page, "first-run", colours)


def shoot_all(browser: Browser, url: str, contents: list[dict[str, Any]], loras: list[str]) -> None:
    """Every other view."""
    before, after = contents[-2]["id"], contents[-1]["id"]
    draft = {
        "prompt": PROMPT,
        "negative": NEGATIVE,
        "steps": 10,
        "loras": [{"id": one, "scale": 0.7} for one in loras[:2]],
    }
    grids = ["", ""]
    for colours in BOTH:
        with opened(browser, url, colours, draft, viewport=DESKTOP) as page:
            page.locator(".strip .thumb img").first.wait_for()
            shoot(page, "create", colours)
            for view in ("gallery", "loras", "avatars", "costs"):
                page.goto(f"{url}/#/{view}")
                shoot(page, view, colours)
            page.goto(f"{url}/#/content/{after}")
            shoot(page, "picture", colours)
            page.get_by_role("button", name="Look at it large").click()
            page.locator(".lightbox img").wait_for()
            shoot(page, "large", colours)
            page.keyboard.press("Escape")
            shoot_source(page, colours)
            page.goto(f"{url}/#/verify")
            signed = httpx2.get(contents[-1]["image_url"]).content
            page.get_by_label("Choose a picture").set_input_files(
                {"name": "panda.png", "mimeType": "image/png", "buffer": signed}
            )
            page.locator(".facts").first.wait_for()
            shoot(page, "verify", colours)
            page.goto(f"{url}/#/compare/{before}/{after}")
            page.locator(".split img").first.wait_for()
            shoot(page, "compare", colours)
            grids = shoot_grids(page, url, grids, colours)
            page.goto(f"{url}/#/batches")
            page.get_by_label("Prompts").fill("a teapot, green background\na fox, white background")
            page.get_by_role("button", name="Generate them all").click()
            page.locator(".card").first.wait_for()
            shoot(page, "batches", colours)
            page.get_by_text("2 finished").first.wait_for(timeout=600_000)
            shoot_words(page, url, colours)
            shoot_pause(page, url, colours)
        phone = {"viewport": PHONE, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
        with opened(browser, url, colours, draft, **phone) as page:
            page.locator(".strip .thumb img").first.wait_for()
            shoot(page, "phone", colours)
            page.goto(f"{url}/#/content/{after}")
            shoot(page, "phone-picture", colours)
            page.goto(f"{url}/#/gallery")
            shoot(page, "phone-gallery", colours)
            page.goto(grids[1])
            page.locator(".xy td img").first.wait_for()
            shoot(page, "phone-grid", colours)
    laptop = {"viewport": {"width": 1280, "height": 720}, "locale": "es-MX"}
    with opened(browser, url, "light", draft, **laptop) as page:
        page.locator(".strip .thumb img").first.wait_for()
        shoot(page, "create-es", "light")
        page.goto(f"{url}/#/loras")
        shoot(page, "loras-es", "light")
    with opened(browser, url, "light", draft, **{**phone, "locale": "es-MX"}) as page:
        page.locator(".strip .thumb img").first.wait_for()
        shoot(page, "phone-es", "light")


def shoot_grids(page: Page, url: str, grids: list[str], colours: Colours) -> list[str]:
    """A LoRA's scale by seed, then words of the prompt by which LoRA; `grids` are there already."""
    made = []
    for name, cells, there in (("grid", 9, grids[0]), ("grid-loras", 6, grids[1])):
        page.goto(there or f"{url}/#/grid")
        if not there:
            if name == "grid-loras":
                page.get_by_label("Across (X)").last.select_option("words")
                page.get_by_label("Values").first.fill("cute panda; sleepy fox")
                page.get_by_label("Down (Y)").last.select_option("which_lora")
                shoot(page, "grid-form", colours)
            page.get_by_role("button", name="Generate the grid").click()
        expect(page.locator(".xy td img:not(.preview)")).to_have_count(cells, timeout=600_000)
        made.append(page.url)
        shoot(page, name, colours)
    return made


def shoot_words(page: Page, url: str, colours: Colours) -> None:
    """The form's styles, and where they are kept."""
    page.goto(f"{url}/#/create")
    styles = page.locator("fieldset.styles")
    styles.get_by_role("button", name=next(iter(STYLES))).click()
    styles.scroll_into_view_if_needed()
    shoot(page, "styles", colours)
    styles.get_by_role("button", name="Own styles and wildcards").click()
    page.get_by_role("dialog", name="Own styles and wildcards").wait_for()
    shoot(page, "words", colours)
    page.keyboard.press("Escape")
    styles.get_by_role("button", name=next(iter(STYLES))).click()


def shoot_pause(page: Page, url: str, colours: Colours) -> None:
    """A queue that is paused, with what waits in it."""
    queue = f"{url}/api/v1/queue"
    httpx2.post(f"{queue}/pause").raise_for_status()
    try:
        for _ in range(3):
            with page.expect_response("**/content/generate"):
                page.get_by_role("button", name="Generate", exact=False).first.click()
        page.get_by_role("button", name="3 in progress").click()
        page.locator(".queue .thumb").nth(2).wait_for()
        shoot(page, "queue", colours)
        page.get_by_role("button", name="Cancel all").click()
        page.get_by_role("dialog").wait_for(state="detached")
    finally:
        httpx2.post(f"{queue}/resume").raise_for_status()
    # Of no use to the views that come after.
    api = f"{url}/api/v1/content"
    for content in httpx2.get(api, params={"status": "cancelled"}).json()["items"]:
        httpx2.delete(f"{api}/{content['id']}").raise_for_status()


def shoot_source(page: Page, colours: Colours) -> None:
    """The picture of this page taken to be drawn over, and a mask painted on it."""
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("menuitem", name="Draw over this picture").click()
    panel = page.get_by_role("group", name="Picture to draw over")
    panel.get_by_role("button", name="A part").click()
    panel.scroll_into_view_if_needed()
    shoot(page, "source", colours)
    panel.get_by_role("button", name="Paint what to draw anew").click()
    painter = page.get_by_role("dialog")
    canvas = painter.get_by_role("img", name="Mask: ")
    canvas.wait_for()
    box = canvas.bounding_box()
    assert box is not None
    for x, y, act in ((0.3, 0.35, "down"), (0.6, 0.3, ""), (0.7, 0.45, ""), (0.4, 0.55, "up")):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if act:
            getattr(page.mouse, act)()
    shoot(page, "mask", colours)
    painter.get_by_role("button", name="Use this mask").click()
    panel.get_by_role("button", name="Take the picture out").click()
    page.get_by_role("button", name="Dismiss").click()


def shoot_live(browser: Browser, url: str) -> None:
    """A picture while it is drawn."""
    draft = {"prompt": "an owl, blue background", "steps": 100, "count": 8}
    for colours in BOTH:
        with opened(browser, url, colours, draft, viewport=DESKTOP) as page:
            page.get_by_label("Prompt", exact=True).press("Control+Enter")
            page.locator(".frame img.preview").wait_for(timeout=60_000)
            nearly_done = re.compile("^(8[5-9]|9[0-9])")
            bar = page.locator(".frame [aria-valuenow]").first
            expect(bar).to_have_attribute("aria-valuenow", nearly_done, timeout=600_000)
            shoot(page, "live", colours)
            page.locator(".frame[data-status=succeeded]").wait_for(timeout=600_000)


def main() -> int:
    """0 when every picture was written."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is needed: apt-get install chromium", file=sys.stderr)
        return 1
    OUTPUT.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="studio-screenshots-"))
    stack = build_stack(
        port=free_port(), worker_port=free_port(), data_dir=folder / "data", logs=folder / "logs"
    )
    print("Starting the backend and a worker with the small model ...", flush=True)
    try:
        with running(stack), sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--force-color-profile=srgb"]
            )
            url = stack.backend_url
            shoot_first_run(browser, url)
            contents, loras = make_all(url)
            shoot_all(browser, url, contents, loras)
            shoot_live(browser, url)
            browser.close()
    except (StackError, httpx2.HTTPError) as error:
        print(f"No screenshots: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
