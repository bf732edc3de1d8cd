"""Styles and wildcards: whose they are, what they make of a prompt, and the seed that draws."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import URL

from sdxl_contract.limits import PROMPT_MAX_CHARS
from testkit.backend import CONTENT, Backend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble

WORDS = "/api/v1/words"
COLOURS = [f"colour {number}" for number in range(50)]


async def keep(backend: Backend, kind: str, name: str, expected: int = 200, **body: Any) -> Any:
    answer = await backend.http.put(f"{WORDS}/{kind}/{name}", json=body)
    assert answer.status_code == expected, answer.text
    return answer.json()


async def test_styles_and_wildcards_are_kept_changed_listed_and_removed(backend: Backend) -> None:
    await keep(backend, "styles", "Ink", prompt="ink drawing of {prompt}", negative_prompt="photo")
    await keep(backend, "styles", "Ink", prompt="{prompt}, ink")
    await keep(backend, "wildcards", "Colour", lines=["red"])
    await keep(backend, "wildcards", "colour", lines=["blue", "green"])

    styles = (await backend.http.get(f"{WORDS}/styles")).json()["items"]
    assert styles == [{"name": "Ink", "prompt": "{prompt}, ink", "negative_prompt": ""}]
    wildcards = (await backend.http.get(f"{WORDS}/wildcards")).json()["items"]
    assert wildcards == [{"name": "colour", "lines": ["blue", "green"]}]
    for path in ("styles/Ink", "wildcards/COLOUR"):
        assert (await backend.http.delete(f"{WORDS}/{path}")).status_code == 204
        assert (await backend.http.delete(f"{WORDS}/{path}")).status_code == 404


async def test_nobody_sees_or_uses_another_s(backend: Backend, database_url: URL) -> None:
    own, foreign = await add_key(database_url, "ann"), await add_key(database_url, "ben")
    backend.http.headers.update(own)
    await keep(backend, "styles", "Ink", prompt="ink")
    await keep(backend, "wildcards", "colour", lines=["red"])
    backend.http.headers.update(foreign)
    for kind in ("styles", "wildcards"):
        assert (await backend.http.get(f"{WORDS}/{kind}")).json()["items"] == []
    assert (await backend.http.delete(f"{WORDS}/styles/Ink")).status_code == 404
    refused = await backend.generate(404, styles=["Ink"])
    assert refused["field"] == "styles[0]"
    assert (await backend.generate(prompt="a __colour__ fig"))["prompt"] == "a __colour__ fig"


async def test_styles_stand_around_the_prompts_in_their_order(
    backend: Backend, inference: InferenceDouble
) -> None:
    await keep(backend, "styles", "Ink", prompt="ink of {prompt}", negative_prompt="photo")
    await keep(backend, "styles", "Night", prompt="at night", negative_prompt="{prompt}, day")
    content = await backend.generate(
        prompt="a fig", negative_prompt="blur", styles=["Ink", "Night"]
    )
    assert content["prompt"] == "ink of a fig, at night"
    assert content["negative_prompt"] == "blur, photo, day"
    assert inference.requests[-1].prompt == "ink of a fig, at night"
    written = {"prompt": "a fig", "negative_prompt": "blur", "styles": ["Ink", "Night"]}
    assert content["written"] == written
    replay = await backend.http.post(f"{CONTENT}/{content['id']}/replay")
    assert replay.json()["written"] == written
    assert (await backend.generate(prompt="a __fig__"))["written"] is None

    await keep(backend, "styles", "Bomb", prompt="{prompt}" * 500)
    refused = await backend.generate(422, prompt="x" * 1000, styles=["Bomb"] * 3)
    assert refused["field"] == "prompt"


async def test_the_seed_draws_the_lines_and_the_same_seed_the_same(backend: Backend) -> None:
    await keep(backend, "wildcards", "colour", lines=COLOURS)
    await keep(backend, "wildcards", "fruit", lines=["a __colour__ fig", "a __Colour__ pear"])
    words: dict[str, Any] = {
        "prompt": "__fruit__ and __fruit__, __nothing__",
        "negative_prompt": "__colour__",
    }
    first, again, other = [await backend.generate(**words, seed=seed) for seed in (7, 7, 8)]
    assert first["prompt"] == again["prompt"] != other["prompt"]
    assert first["written"] == {**words, "styles": []}
    assert first["negative_prompt"] == again["negative_prompt"]
    assert first["prompt"].count("colour ") == 2
    assert first["prompt"].endswith(", __nothing__")
    assert first["images"][0]["sha256"] == again["images"][0]["sha256"]

    by_chance = await backend.generate(**words)
    seed = by_chance["parameters"]["seed"]
    assert (await backend.generate(**words, seed=seed))["prompt"] == by_chance["prompt"]
    # A replay keeps the words, also when the lists are others by then.
    await keep(backend, "wildcards", "colour", lines=["black"])
    replay = await backend.http.post(f"{CONTENT}/{first['id']}/replay")
    assert (await ended(backend, replay.json()["id"]))["prompt"] == first["prompt"]


@pytest.mark.parametrize("seed", [None, 40])
async def test_each_copy_of_a_batch_draws_its_own_words(backend: Backend, seed: int | None) -> None:
    await keep(backend, "wildcards", "colour", lines=COLOURS)
    asked = {"prompts": ["a __colour__ fig", "plain"], "count": 4, "seed": seed}
    made = await backend.http.post(f"{CONTENT}/batch", json=asked)
    assert made.status_code == 202, made.text
    contents = [await ended(backend, one) for one in made.json()["content_ids"]]
    assert len({one["prompt"] for one in contents[:4]}) > 1
    assert [one["prompt"] for one in contents[4:]] == ["plain"] * 4
    for one in contents[:4]:
        again = await backend.generate(prompt="a __colour__ fig", seed=one["parameters"]["seed"])
        assert again["prompt"] == one["prompt"]
    if seed is not None:
        assert [one["parameters"]["seed"] for one in contents] == list(range(40, 48))


async def test_wildcards_that_name_one_another_end(backend: Backend) -> None:
    await keep(backend, "wildcards", "a", lines=["__b__"])
    await keep(backend, "wildcards", "b", lines=["__a__"])
    refused = await backend.generate(422, prompt="__a__")
    assert refused["field"] == "prompt"
    await keep(backend, "wildcards", "a", lines=["__b__" * 100])
    await keep(backend, "wildcards", "b", lines=["__c__" * 100])
    await keep(backend, "wildcards", "c", lines=["x"])
    assert (await backend.generate(422, prompt="__a__"))["field"] == "prompt"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("wildcards/a__b", {"lines": ["x"]}),
        ("wildcards/_a", {"lines": ["x"]}),
        ("wildcards/a", {"lines": []}),
        ("wildcards/a", {"lines": ["x" * 1001]}),
        ("wildcards/a", {"lines": ["a\x00b"]}),
        ("styles/a", {"prompt": "x" * (PROMPT_MAX_CHARS + 1)}),
        ("styles/a", {"promt": "x"}),
        ("styles/" + "a" * 101, {"prompt": "x"}),
    ],
)
async def test_what_cannot_be_kept_is_refused(
    backend: Backend, path: str, body: dict[str, Any]
) -> None:
    answer = await backend.http.put(f"{WORDS}/{path}", json=body)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["field"]


async def test_a1111_lists_styles_and_draws_with_them(
    backend: Backend, inference: InferenceDouble
) -> None:
    await keep(backend, "styles", "Ink", prompt="ink of {prompt}")
    listed = (await backend.http.get("/sdapi/v1/prompt-styles")).json()
    assert listed == [{"name": "Ink", "prompt": "ink of {prompt}", "negative_prompt": ""}]
    body = {"prompt": "a fig", "styles": [None, "None", "Ink"], "width": 512, "height": 512}
    answer = await backend.http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    assert inference.requests[-1].prompt == "ink of a fig"
