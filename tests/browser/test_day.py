"""A working day with the page: boards, links, presets, a lost line, long names, a swipe."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from playwright.sync_api import FilePayload, Page, Route, expect

from testkit.browser import OpenPage, Studio, Watch, fitting_lora, wait_until
from testkit.loras.plain_bytes import sd15_lora

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]


def is_inside(page: Page, selector: str) -> bool:
    """Whether the first such element is whole in the window."""
    found: bool = page.locator(selector).first.evaluate(
        "(e) => { const b = e.getBoundingClientRect();"
        " return b.top >= 0 && b.left >= 0 && b.bottom <= innerHeight && b.right <= innerWidth; }"
    )
    return found


def test_pictures_are_put_on_a_board_that_can_be_renamed_and_removed(
    studio: Studio, open_page: OpenPage
) -> None:
    first, second = (studio.draw(f"a nut for the board, {n}") for n in ("first", "second"))
    page = open_page(studio.url, path=f"#/content/{first['id']}")
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("menuitem", name="New board").click()
    page.get_by_role("dialog").get_by_label("Name").fill("Nuts")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_text("On the board Nuts.")).to_be_visible()

    page.goto(f"{studio.url}/#/gallery")
    thumbs = page.locator(".virtual-grid .thumb")
    expect(page.locator(f".thumb[data-id^='{second['id']}']")).to_be_visible()
    page.get_by_role("button", name="More filters").click()
    page.get_by_label("Board", exact=True).select_option(label="Nuts (1)")
    expect(thumbs).to_have_count(1)
    expect(page.locator(f".thumb[data-id^='{first['id']}']")).to_be_visible()
    page.reload()
    expect(thumbs).to_have_count(1)

    if page.get_by_label("Board", exact=True).count() == 0:
        page.get_by_role("button", name="More filters").click()
    page.get_by_role("button", name="Rename Nuts").click()
    page.get_by_role("dialog").get_by_label("Name").fill("Seeds")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Remove the board Seeds").click()
    expect(page.get_by_text("The board Seeds is removed")).to_be_visible()
    expect(page.locator(f".thumb[data-id^='{second['id']}']")).to_be_visible()


def test_a_link_shows_one_picture_to_a_stranger_until_it_is_ended(
    keyed: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected += ["401", "404"]
    key = keyed.make_key("sharer")
    page = open_page(keyed.url)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Prompt", exact=True).fill("a nut to be shown around")
    page.get_by_role("button", name="Generate", exact=False).first.click()
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("menuitem", name="Share a link").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Make a link").click()
    link = dialog.get_by_label("Link").input_value()

    stranger = open_page(link)
    expect(stranger.locator("main.shared img")).to_be_visible()
    expect(stranger.get_by_text("a nut to be shown around")).to_have_count(0)
    dialog.get_by_role("button", name="End all links to it").click()
    expect(page.get_by_text("No link shows this picture any more.")).to_be_visible()
    stranger.reload()
    expect(stranger.get_by_text("This link has expired")).to_be_visible()


def test_a_preset_a_style_and_an_earlier_prompt_are_taken_and_taken_back(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"prompt": "a walnut", "steps": 7})
    prompt = page.get_by_label("Prompt", exact=True)
    page.get_by_role("button", name="Styles and presets").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name of a preset").fill("My walnut")
    dialog.get_by_role("button", name="Keep the form as it is").click()
    dialog.get_by_role("button", name="Line art").click()
    expect(prompt).to_have_value("line art of a walnut, clean ink lines, white background")
    page.get_by_role("button", name="Undo").click()
    expect(prompt).to_have_value("a walnut")

    page.get_by_label("Prompt", exact=True).fill("something else")
    page.reload()
    page.get_by_role("button", name="Styles and presets").click()
    page.get_by_role("dialog").get_by_role("button", name="My walnut", exact=False).first.click()
    expect(prompt).to_have_value("a walnut")
    expect(page.get_by_label("Steps (exact value)")).to_have_value("7")

    undo = page.get_by_role("button", name="Undo")
    page.get_by_role("button", name="Earlier prompts").click()
    page.get_by_role("dialog").get_by_text("something else").click()
    expect(prompt).to_have_value("something else")
    undo.click()
    expect(prompt).to_have_value("a walnut")
    page.get_by_role("button", name="Reset the form").click()
    expect(prompt).to_have_value("")
    undo.click()
    expect(prompt).to_have_value("a walnut")


def test_a_banner_takes_its_own_room_and_hides_nothing(studio: Studio, open_page: OpenPage) -> None:
    def without_worker(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "worker": "unreachable"})

    studio.draw("a nut below the banner")
    page = open_page(studio.url, viewport={"width": 1440, "height": 900})
    expect(page.locator(".strip .thumb").first).to_be_visible()
    page.route("**/api/v1/model", without_worker)
    page.reload()
    expect(page.locator(".banner")).to_be_visible()
    for part in (".banner", ".composer-foot button[type=submit]", ".strip"):
        assert is_inside(page, part), part
    # What is scrolled in the form does not lie under the banner either.
    page.locator(".composer-fields").evaluate("(e) => e.scrollTo(0, 9999)")
    banner, fields = (page.locator(one).bounding_box() for one in (".banner", ".composer-fields"))
    assert banner is not None
    assert fields is not None
    assert fields["y"] >= banner["y"] + banner["height"] - 1


def test_what_failed_for_a_lost_line_comes_back_with_it(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("ERR_FAILED")
    page = open_page(studio.url, path="#/create")
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    page.route("**/api/v1/**", lambda route: route.abort())
    page.evaluate("location.hash = '#/costs'")
    told = page.get_by_role("heading", name="The server does not answer.")
    expect(told).to_be_visible()
    expect(page.locator(".banner")).to_be_visible()
    page.unroute("**/api/v1/**")
    expect(told).to_have_count(0)
    expect(page.locator(".banner")).to_have_count(0)
    expect(page.get_by_label("Time span")).to_be_visible()

    # A picture that this page has not seen yet, the batches and the grids: they come with it too.
    for view, seen in (
        ("content/ID", ".frame img"),
        ("compare/ID/ID", ".split img"),
        ("batches", ".batches .card, .batches .empty"),
    ):
        page.goto(f"{studio.url}/#/create")
        page.reload()
        expect(page.locator("main .loading")).to_have_count(0)
        made = studio.draw("a nut drawn meanwhile")
        page.route("**/api/v1/**", lambda route: route.abort())
        page.evaluate(f"location.hash = '#/{view.replace('ID', made['id'])}'")
        expect(page.locator(".banner")).to_be_visible()
        page.unroute("**/api/v1/**")
        expect(page.locator(seen).first).to_be_visible()
        expect(page.locator(".banner")).to_have_count(0)
        expect(page.locator(".notice")).to_have_count(0)

    # A file whose way broke off goes again without being chosen again.
    page.goto(f"{studio.url}/#/loras")
    page.route("**/models/upload**", lambda route: route.abort())
    page.locator("main input[type=file]").set_input_files(
        FilePayload(
            name="sent_twice.safetensors",
            mimeType="",
            buffer=fitting_lora(studio.worker_url, trigger="senttwice"),
        )
    )
    again = page.locator(".uploads").get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    page.unroute("**/models/upload**")
    again.click()
    expect(page.locator(".card", has_text="sent twice")).to_be_visible()


def test_long_names_stay_in_their_cards_and_refusals_go_at_once(
    studio: Studio, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected.append("422")
    page = open_page(studio.url, path="#/loras")
    name = "a_very_long_name_" * 8
    page.locator("main input[type=file]").set_input_files(
        [
            FilePayload(name=f"{name}{n}.safetensors", mimeType="", buffer=sd15_lora())
            for n in range(2)
        ]
    )
    refused = page.locator(".uploads .refused")
    expect(refused).to_have_count(2)
    too_wide = page.locator(".uploads").evaluate(
        "(e) => [...e.querySelectorAll('*')].filter((c) => c.scrollWidth > c.clientWidth + 1"
        " && getComputedStyle(c).overflowX === 'visible' && c.clientWidth).length"
    )
    assert too_wide == 0
    page.get_by_role("button", name="Dismiss all").click()
    expect(refused).to_have_count(0)

    # Chosen in the form too, between its number and the button that takes it out.
    uses = fitting_lora(studio.worker_url, trigger="longname")
    page.locator("main input[type=file]").set_input_files(
        FilePayload(name=f"{name}.safetensors", mimeType="", buffer=uses)
    )
    page.get_by_role("button", name="Use it").first.click()
    use = page.locator(".lora-use").first
    expect(use.locator("input[type=range]")).to_be_visible()
    assert use.evaluate(
        "(e) => [...e.querySelectorAll('*')].every((c) => "
        "c.getBoundingClientRect().right <= e.getBoundingClientRect().right)"
    )


def test_a_swipe_goes_to_the_next_picture(studio: Studio, open_page: OpenPage) -> None:
    made = studio.draw("two nuts to be swiped", num_images=2)
    seeds = [image["id"] for image in made["images"]]
    assert len(seeds) == 2
    page = open_page(studio.url, path=f"#/content/{made['id']}", has_touch=True)
    page.locator(".frame-open").click()
    stage = page.locator(".lightbox-stage")
    image = stage.locator("img")
    first = image.get_attribute("src")
    assert first is not None
    for kind, x in (("down", 400), ("move", 300), ("up", 150)):
        stage.dispatch_event(
            f"pointer{kind}",
            {"pointerId": 1, "pointerType": "touch", "clientX": x, "clientY": 300, "button": 0},
        )
    expect(image).not_to_have_attribute("src", first)


def test_a_finished_picture_is_told_by_the_system_where_that_is_wished_for(
    studio: Studio, open_page: OpenPage
) -> None:
    page = open_page(studio.url, draft={"prompt": "a nut nobody waits for"})
    page.add_init_script(
        """window.told = [];
        window.Notification = class { constructor(title, options) {
          window.told.push([title, options.body]); }
          static requestPermission() { return Promise.resolve('granted'); }
          close() {} };
        Object.defineProperty(document, 'hidden', { get: () => window.isAway === true });"""
    )
    page.reload()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    page.get_by_label("Notify when finished").check()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.evaluate("window.isAway = true")
    page.get_by_role("button", name="Generate", exact=False).first.click()
    expect(page.locator(".stage .frame")).to_have_attribute("data-status", "succeeded")
    told = wait_until(page, "window.told.length > 0 && window.told")
    assert told == [["Finished", "a nut nobody waits for"]]
    expect(page).to_have_title("✓ · Create · Studio")


def test_a_lora_gets_a_cover_words_and_notes_and_is_found_by_them(
    studio: Studio, open_page: OpenPage
) -> None:
    answer = httpx2.post(
        f"{studio.url}/api/v1/loras/models/upload",
        files={"file": ("x.safetensors", fitting_lora(studio.worker_url, trigger="covered"))},
        data={"name": "to be covered"},
        timeout=60,
    )
    lora = answer.raise_for_status().json()["id"]
    made = studio.draw("a covered nut", loras=[{"lora_model_id": lora, "scale": 1}])
    page = open_page(studio.url, path="#/loras")
    page.get_by_role("button", name="Edit to be covered").click()
    dialog = page.get_by_role("dialog").first
    dialog.get_by_role("button", name="Choose a cover").click()
    page.locator(f"dialog [data-id^='{made['id']}']").click()
    for label, text in (("Name", "Walnut ink"), ("Tags", "ink, autumn"), ("Notes", "For leaves.")):
        dialog.get_by_label(label, exact=True).fill(text)
    dialog.get_by_role("button", name="Save").click()
    card = page.locator(".card", has_text="Walnut ink")
    expect(card).to_contain_text("For leaves.")
    expect(card).to_contain_text("ink · autumn")
    expect(card.locator(".cover img, img.cover").first).to_be_visible()
    kept = httpx2.get(f"{studio.url}/api/v1/loras/models/{lora}").json()
    assert kept["cover_image_id"] == made["images"][0]["id"]

    # Found in the form by a tag; what nothing has is said.
    many = [{**kept, "id": f"{n:08}-0000-4000-8000-000000000000"} for n in range(7)]
    page.route("**/api/v1/loras/models", lambda route: route.fulfill(json={"items": [kept, *many]}))
    page.goto(f"{studio.url}/#/create")
    page.reload()
    page.get_by_role("button", name="Add a LoRA").click()
    search = page.get_by_role("dialog").get_by_role("searchbox")
    search.fill("autumn walnut")
    expect(page.get_by_role("dialog").locator(".choices button")).to_have_count(8)
    search.fill("winter")
    expect(page.get_by_text("No LoRA matches “winter”.")).to_be_visible()


def test_a_picture_is_varied_in_small_steps(studio: Studio, open_page: OpenPage) -> None:
    answer = httpx2.post(
        f"{studio.url}/api/v1/loras/models/upload",
        files={"file": ("x.safetensors", fitting_lora(studio.worker_url, trigger="stepped"))},
        data={"name": "stepped"},
        timeout=60,
    )
    lora = answer.raise_for_status().json()["id"]
    avatar = httpx2.post(
        f"{studio.url}/api/v1/identities/avatars",
        json={"name": "Ada", "base_prompt": "a squirrel", "lora_model_id": lora, "lora_scale": 0.5},
    )
    own: dict[str, Any] = {"avatar_id": avatar.raise_for_status().json()["id"], "seed": 0}
    most = httpx2.get(f"{studio.url}/api/v1/model").json()["lora_scale"]["maximum"]
    given: dict[str, Any] = {
        "loras": [{"lora_model_id": lora, "scale": most}],
        "seed": 41,
        "num_images": 2,
    }
    sent: list[dict[str, Any]] = []

    def accept(route: Route) -> None:
        sent.append(route.request.post_data_json or {})
        route.fulfill(status=202, json=made)

    def step(page: Page, name: str) -> dict[str, Any]:
        page.get_by_role("button", name="More actions").click()
        with page.expect_response("**/content/generate"):
            page.get_by_role("menuitem", name=name, exact=True).click()
        page.goto(f"{studio.url}/#/content/{made['id']}_{made['parameters']['num_images']}")
        return sent[-1]

    made = studio.draw("two nuts to be varied", **given)
    page = open_page(studio.url, path=f"#/content/{made['id']}_2")
    page.route("**/content/generate", accept)
    assert step(page, "Seed + 1")["seed"] == 43
    assert step(page, "Seed − 1")["seed"] == 41
    more = step(page, "4 more")
    assert (more["num_images"], more["prompt"]) == (4, "two nuts to be varied")
    weaker = step(page, f"stepped at {most - 0.1:.2f}")["loras"]
    assert weaker == [{"lora_model_id": lora, "scale": pytest.approx(most - 0.1)}]
    # Beyond its bounds nothing is offered: it would be the same picture again.
    page.get_by_role("button", name="More actions").click()
    expect(page.get_by_role("menuitem", name=f"stepped at {most + 0.1:.2f}")).to_have_count(0)

    # An avatar's own LoRA, which the form does not name, is stepped as well.
    made = studio.draw("on a tree", **own)
    page.goto(f"{studio.url}/#/content/{made['id']}_1")
    expect(page.locator(".report")).to_contain_text("on a tree")
    body = step(page, "stepped at 0.60")
    assert body["loras"] == [{"lora_model_id": lora, "scale": 0.6}]
    assert body["avatar_id"] == own["avatar_id"]
    page.get_by_role("button", name="More actions").click()
    expect(page.get_by_role("menuitem", name="Seed − 1", exact=True)).to_have_count(0)
