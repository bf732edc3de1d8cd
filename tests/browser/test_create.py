"""Making pictures: live progress, previews, cancelling, resuming, errors beside their fields."""

from __future__ import annotations

import json
import re
import uuid

import httpx2
import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from testkit.browser import OpenPage, Studio, Watch, fitting_lora
from testkit.loras.plain_bytes import sd15_lora

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Long enough to be watched, also on a fast computer; it is cancelled, not waited for.
LONG = {"steps": 100, "count": 8, "width": 256, "height": 256}


def draw(page: Page, prompt: str) -> str:
    """Ask for a picture with the form; the content's id, once the stage shows it."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    with page.expect_response("**/content/generate") as answer:
        page.get_by_role("button", name="Generate", exact=False).first.click()
    return on_stage(page, answer.value.json()["id"])


def on_stage(page: Page, content_id: str) -> str:
    """`content_id`, once the stage shows it."""
    expect(page.locator(f".strip .thumb.chosen[data-id='{content_id}']")).to_be_visible()
    return content_id


def expect_status(page: Page, status: str) -> None:
    """Wait until what the stage shows has this status."""
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", status)


def test_progress_and_a_preview_are_seen_before_the_end_and_survive_a_reload(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft=LONG)
    drawn = draw(page, "a slow apple")
    frame = page.locator(".stage .frame")

    expect_status(page, "running")
    expect(frame.locator("img.preview")).to_be_visible()
    expect(page).to_have_title(re.compile(r"^[1-9]\d?% · Create · Studio$"))
    expect(frame.get_by_role("progressbar")).to_have_attribute(
        "aria-valuenow", re.compile(r"^[1-9]\d?$")
    )
    page.reload()

    on_stage(page, drawn)
    expect_status(page, "running")
    expect(frame.locator("img.preview")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()

    expect_status(page, "cancelled")
    expect(page).to_have_title("Create · Studio")
    assert studio.content(drawn)["status"] == "cancelled"


@pytest.mark.long
def test_an_answer_to_cancel_that_comes_after_the_end_does_not_undo_it(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft=LONG)
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/content/*/cancel", lambda route: held.append((route, route.fetch())))
    draw(page, "an apple that is stopped")
    expect_status(page, "running")
    expect(page.locator(".stage .frame img.preview")).to_be_visible()

    page.get_by_role("button", name="Cancel", exact=True).click()
    expect_status(page, "cancelled")
    (route, answer), *_ = held
    assert answer.json()["status"] == "running"
    with page.expect_response("**/content/*/cancel"):
        route.fulfill(response=answer)
    page.wait_for_timeout(500)

    expect_status(page, "cancelled")
    expect(page).to_have_title("Create · Studio")


@pytest.mark.long
def test_a_second_click_on_cancel_presses_nothing_else_and_the_end_is_said(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft=LONG)
    draw(page, "a picture that is not wanted")
    expect_status(page, "running")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("the next idea")
    button = page.get_by_role("button", name="Cancel", exact=True)
    place = button.bounding_box()
    assert place is not None
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.click(*middle)
    page.wait_for_timeout(350)
    page.mouse.click(*middle)
    expect_status(page, "cancelled")

    page.mouse.click(*middle)
    expect(prompt).to_have_value("the next idea")
    expect(page.get_by_text("Cancelled: a picture that is not wanted")).to_be_attached()
    assert page.evaluate("() => document.activeElement.closest('.actions')") is None


@pytest.mark.long
def test_what_an_accepted_picture_waits_for_is_said_in_the_pages_words(
    studio: Studio, open_page: OpenPage
) -> None:
    made = studio.draw("an apple that waits")
    fake = {
        **made,
        "id": str(uuid.uuid4()),
        "status": "queued",
        "images": [],
        "image_url": None,
        "finished_at": None,
    }
    waits = {"reason": "worker_unreachable", "message": "raw words of the server"}
    told = json.dumps({"position": 0, "waiting_for": waits})
    page = open_page(studio.url, draft={"prompt": "an apple that waits"})
    page.route("**/content/generate", lambda route: route.fulfill(status=202, json=fake))
    page.route(f"**/content/{fake['id']}", lambda route: route.fulfill(json=fake))
    page.route(
        f"**/content/{fake['id']}/events",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"event: queued\ndata: {told}\n\n"
        ),
    )
    page.get_by_label("Prompt", exact=True).press("Control+Enter")

    frame = page.locator(".stage .frame")
    expect(frame).to_contain_text("The image engine cannot be reached; it starts by itself")
    expect(frame).not_to_contain_text("raw words")


@pytest.mark.long
def test_several_are_drawn_at_once_and_each_comes_to_its_end(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url)
    ids = [draw(page, f"apple number {number}") for number in range(5)]

    for one in ids:
        expect(page.locator(f".strip .thumb[data-id='{one}'] img:not(.preview)")).to_be_visible()
    expect(page).to_have_title("Create · Studio")
    assert {studio.content(one)["status"] for one in ids} == {"succeeded"}


@pytest.mark.long
def test_a_lost_stream_is_taken_up_after_the_last_event_that_came(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url)
    resumed_after: list[str | None] = []

    def cut_off(route: Route) -> None:
        after = route.request.headers.get("last-event-id")
        resumed_after.append(after)
        if after is None:
            body = 'event: progress\nid: 1\ndata: {"phase": "denoise", "step": 1, "steps": 4}\n\n'
            route.fulfill(status=200, content_type="text/event-stream", body=body)
        else:
            route.continue_()

    page.route("**/events", cut_off)
    draw(page, "an apple seen through a bad line")

    expect_status(page, "succeeded")
    assert resumed_after[:2] == [None, "1"]


def test_a_wrong_value_is_told_beside_its_field_and_nothing_is_sent(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url)
    sent = []
    page.on("request", lambda request: sent.append(request.method))
    width = page.get_by_label("Width")
    width.fill("65")
    page.get_by_label("Prompt", exact=True).fill("an apple")
    page.keyboard.press("Control+Enter")

    expect(width).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_text("From 64 to 256 px, in steps of 8.")).to_be_visible()
    expect(width).to_be_focused()
    assert "POST" not in sent
    width.fill("72")
    expect(width).not_to_have_attribute("aria-invalid", "true")


def test_what_only_the_server_knows_is_told_beside_the_field_too(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    page = open_page(studio.url)
    watch.expected.append("status of 4")
    problem = (
        '{"status": 400, "error_code": "INVALID_PROMPT", "field": "prompt",'
        ' "detail": "prompt: weight 9 is too large"}'
    )
    page.route(
        "**/content/generate",
        lambda route: route.fulfill(
            status=400, content_type="application/problem+json", body=problem
        ),
    )
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("(an apple:9)")
    page.keyboard.press("Control+Enter")

    expect(prompt).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_text("Prompt: this value does not fit.")).to_be_visible()
    expect(page.get_by_text("weight 9")).to_have_count(0)


def test_a_dropped_lora_is_inspected_used_and_reported_and_a_bad_one_explained(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    page = open_page(studio.url, path="#/loras")
    watch.expected.append("422")
    files = page.locator("main input[type=file]")
    files.set_input_files(
        {"name": "ink_style.safetensors", "mimeType": "", "buffer": fitting_lora(studio.worker_url)}
    )
    card = page.locator(".card", has_text="ink style")
    expect(card).to_contain_text("inkstyle")
    files.set_input_files({"name": "old.safetensors", "mimeType": "", "buffer": sd15_lora()})
    refused = page.locator(".uploads .refused", has_text="old.safetensors")
    expect(refused).to_contain_text("cannot be used as an SDXL LoRA")
    expect(refused).to_contain_text("SD 1")
    files.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page.locator(".uploads .refused", has_text="notes.txt")).to_contain_text(".safetensors")

    card.get_by_role("button", name="Use it").click()
    page.get_by_label("ink style", exact=True).fill("0.5")
    page.get_by_label("Prompt", exact=True).fill("an apple")
    page.get_by_role("button", name="inkstyle").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("an apple, inkstyle")
    with page.expect_response("**/content/generate") as answer:
        page.keyboard.press("Control+Enter")
    drawn = on_stage(page, answer.value.json()["id"])

    expect_status(page, "succeeded")
    expect(page.locator(".report")).to_contain_text("ink style0.50")
    expect(page.locator(".report")).to_contain_text("1 layer")
    used = studio.content(drawn)
    assert used["loras"][0]["scale"] == 0.5
    assert used["prompt"] == "an apple, inkstyle"


@pytest.mark.long
def test_a_lora_file_can_be_dropped_onto_the_form(studio: Studio, open_page: OpenPage) -> None:
    page = open_page(studio.url)
    transfer = page.evaluate_handle(
        """(bytes) => { const t = new DataTransfer();
        t.items.add(new File([new Uint8Array(bytes)], 'dropped.safetensors')); return t; }""",
        list(fitting_lora(studio.worker_url, "dropword")),
    )
    target = page.locator(".composer")
    target.dispatch_event("dragenter", {"dataTransfer": transfer})
    target.dispatch_event("drop", {"dataTransfer": transfer})

    expect(page.get_by_label("dropped", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="dropword")).to_be_visible()


@pytest.mark.long
def test_an_avatar_brings_its_prompt_and_use_these_settings_takes_it_out_again(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, path="#/avatars")
    page.get_by_role("button", name="New avatar").click()
    page.get_by_label("Name").fill("Mara")
    page.get_by_label("What it looks like").fill("a woman with red hair")
    page.get_by_role("button", name="Save").click()
    page.locator(".card", has_text="Mara").get_by_role("button", name="Generate with it").click()
    drawn = studio.content(draw(page, "on a horse"))
    expect_status(page, "succeeded")
    assert drawn["prompt"] == "a woman with red hair, on a horse"
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.get_by_label("Avatar", exact=True).select_option("")

    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("on a horse")
    expect(page.get_by_label("Seed", exact=True)).to_have_value(str(drawn["parameters"]["seed"]))
    with page.expect_response("**/replay") as answer:
        page.get_by_role("button", name="More actions").click()
        page.get_by_role("menuitem", name="Repeat exactly").click()
    again = on_stage(page, answer.value.json()["id"])
    expect_status(page, "succeeded")
    pictures = [studio.content(one)["images"][0]["sha256"] for one in (drawn["id"], again)]
    assert pictures[0] == pictures[1]


@pytest.mark.long
def test_what_nobody_chose_is_left_out_of_the_request_and_a_sampler_can_be_chosen(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"width": None, "height": None, "steps": None})

    def asked() -> dict[str, object]:
        with page.expect_request("**/content/generate") as sent:
            drawn = draw(page, "an apple")
        expect_status(page, "succeeded")
        body: dict[str, object] = sent.value.post_data_json or {}
        return body | {"drawn": studio.content(drawn)["parameters"]}

    left_open = asked()
    assert left_open.keys() == {"prompt", "negative_prompt", "loras", "num_images", "drawn"}
    drawn = left_open["drawn"]
    assert isinstance(drawn, dict)
    assert (drawn["width"], drawn["height"]) == (128, 128)  # the model's own

    page.get_by_label("Sampler").select_option("lcm")
    page.get_by_label("Steps").first.fill("3")
    page.get_by_label("Steps").first.blur()
    chosen = asked()
    assert chosen.keys() - left_open.keys() == {"steps", "scheduler"}
    assert (chosen["steps"], chosen["scheduler"]) == (3, "lcm")

    page.goto(f"{studio.url}/#/avatars")
    page.get_by_role("button", name="New avatar").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Few steps")
    form.get_by_label("What it looks like").fill("a pear")
    form.get_by_label("Sampler").select_option("euler_trailing")
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)
    avatars = httpx2.get(f"{studio.url}/api/v1/identities/avatars").json()["items"]
    assert avatars[0]["scheduler"] == "euler_trailing"


@pytest.mark.long
def test_a_picture_can_be_downloaded_and_its_link_opens_it(
    studio: Studio, open_page: OpenPage
) -> None:
    made = studio.draw("an apple to take home")
    page = open_page(studio.url, path=f"#/content/{made['id']}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()

    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    assert download.value.suggested_filename.endswith(f"-{made['parameters']['seed']}.png")


@pytest.mark.long
def test_when_the_server_goes_away_the_page_says_so_and_comes_back(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("ERR_INTERNET_DISCONNECTED")
    page = open_page(studio.url)
    expect(page.get_by_role("button", name="Generate", exact=False).first).to_be_enabled()
    page.context.set_offline(True)
    page.get_by_label("Prompt", exact=True).fill("an apple")
    page.keyboard.press("Control+Enter")

    expect(page.get_by_text("The server does not answer. The page keeps trying")).to_be_visible()
    page.context.set_offline(False)
    expect(page.get_by_text("The server does not answer. The page keeps")).to_be_hidden()
    draw(page, "an apple after all")
    expect_status(page, "succeeded")


@pytest.mark.long
def test_a_dropped_picture_s_file_gives_the_same_picture_again(
    studio: Studio, open_page: OpenPage
) -> None:
    first = studio.draw(
        "an ((apple))", negative_prompt="a pear", prompt_syntax="a1111", clip_skip=1, seed=11,
        guidance_rescale=0.123456789, scheduler="euler_a",
        hires={"scale": 1.5, "steps": 2, "strength": 0.5, "prompt": "a lemon, ripe", "cfg": 3.5},
    )  # fmt: skip
    page = open_page(studio.url)
    transfer = page.evaluate_handle(
        """(bytes) => { const t = new DataTransfer();
        const type = 'image/png';
        t.items.add(new File([new Uint8Array(bytes)], 'a.png', { type })); return t; }""",
        list(httpx2.get(first["image_url"]).content),
    )
    page.locator(".composer").dispatch_event("drop", {"dataTransfer": transfer})
    more = page.get_by_text("Also taken over")
    expect(more).to_contain_text("lip skip")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("an ((apple))")

    drawn = draw(page, "an ((apple))")
    expect_status(page, "succeeded")
    again = studio.content(drawn)
    assert again["images"][0]["sha256"] == first["images"][0]["sha256"]
    page.get_by_role("button", name="Take out").click()
    expect(more).to_have_count(0)
