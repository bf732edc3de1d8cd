"""X/Y grids kept by the backend: asked for in one call, each cell with its own values."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from testkit.backend import Backend, StartBackend
from testkit.loras.plain_bytes import kohya_lora

BATCH = "/api/v1/content/batch"


def grid(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"prompts": ["a red apple"], "grid": {"x": x, "y": y}, **more}


async def contents_of(backend: Backend, ids: list[str]) -> list[dict[str, Any]]:
    return [(await backend.http.get(f"/api/v1/content/{one}")).json() for one in ids]


async def test_each_cell_has_its_values_and_all_else_is_the_same(
    start_backend: StartBackend,
) -> None:
    async with start_backend() as backend:
        x = {"parameter": "cfg", "values": [3, 5.5, 8]}
        y = {"parameter": "steps", "values": [2, 4]}
        answer = await backend.http.post(BATCH, json=grid(x, y))
        assert answer.status_code == 202, answer.text
        made = answer.json()
        cells = [one["parameters"] for one in await contents_of(backend, made["content_ids"])]

        assert [(one["steps"], one["cfg"]) for one in cells] == [
            (steps, cfg) for steps in (2, 4) for cfg in (3, 5.5, 8)
        ]
        assert len({one["seed"] for one in cells}) == 1
        shown = (await backend.http.get(f"{BATCH}/{made['batch_id']}")).json()
        assert (shown["total"], shown["grid"]["x"]["values"]) == (6, [3, 5.5, 8])
        assert shown["grid"]["y"]["parameter"] == "steps"

        plain = await backend.http.post(BATCH, json={"prompts": ["a pear"]})
        for is_grid, only in (("true", made), ("false", plain.json())):
            listed = (await backend.http.get(BATCH, params={"grid": is_grid})).json()["items"]
            assert [one["batch_id"] for one in listed] == [only["batch_id"]]

        again = await backend.http.post(f"{BATCH}/{made['batch_id']}/repeat")
        repeated = await contents_of(backend, again.json()["content_ids"])
        assert [one["parameters"]["cfg"] for one in repeated] == [3, 5.5, 8] * 2


async def test_a_loras_scale_and_the_seed_are_axes_too(start_backend: StartBackend) -> None:
    async with start_backend() as backend:
        lora = await backend.upload(kohya_lora())
        x = {"parameter": "lora", "lora_model_id": lora["id"], "values": [0, 0.5]}
        y = {"parameter": "seed", "values": [7, 2**32 - 1]}
        answer = await backend.http.post(BATCH, json=grid(x, y))
        cells = await contents_of(backend, answer.json()["content_ids"])

        assert [
            (one["parameters"]["seed"], [use["scale"] for use in one["loras"]]) for one in cells
        ] == [(seed, [scale]) for seed in (7, 2**32 - 1) for scale in (0, 0.5)]


def prompts_of(cells: list[dict[str, Any]]) -> list[str]:
    return [one["prompt"] for one in cells]


async def test_prompts_and_sizes_are_axes_too(start_backend: StartBackend) -> None:
    async with start_backend() as backend:
        texts, sizes = ["a pear", "a fig, ripe"], ["512x512", "768x1024"]
        x = {"parameter": "prompt", "values": texts}
        y = {"parameter": "size", "values": sizes}
        answer = await backend.http.post(BATCH, json={"grid": {"x": x, "y": y}})
        assert answer.status_code == 202, answer.text
        made = answer.json()
        cells = await contents_of(backend, made["content_ids"])
        assert [
            (one["prompt"], one["parameters"]["width"], one["parameters"]["height"])
            for one in cells
        ] == [(text, *size) for size in ((512, 512), (768, 1024)) for text in texts]
        assert [one["batch_place"] for one in cells] == [0, 1, 2, 3]
        assert len({one["parameters"]["seed"] for one in cells}) == 1
        shown = (await backend.http.get(f"{BATCH}/{made['batch_id']}")).json()
        assert shown["prompts"] == texts
        assert shown["grid"]["y"]["values"] == sizes

        # A deleted cell leaves its place empty, and a repeated grid has it again.
        await backend.http.delete(f"/api/v1/content/{made['content_ids'][1]}")
        left = await backend.http.get("/api/v1/content", params={"batch_id": made["batch_id"]})
        assert sorted(one["batch_place"] for one in left.json()["items"]) == [0, 2, 3]
        again = await backend.http.post(f"{BATCH}/{made['batch_id']}/repeat")
        repeated = await contents_of(backend, again.json()["content_ids"])
        assert prompts_of(repeated) == texts * 2


async def test_larger_cells_count_for_more_before_they_are_drawn(backend: Backend) -> None:
    await backend.generate(prompt="a pear", width=512, height=512, steps=20)
    await backend.http.post("/api/v1/queue/pause")
    asked = grid(on("size", "512x512", "1024x1024"), on("steps", 20, 40))
    await backend.http.post(BATCH, json=asked)
    total = (await backend.http.get("/api/v1/costs/summary")).json()["total"]

    expected = (1 + 4) * (1 + 2) * total["actual_usd"]
    assert total["estimated_usd"] - total["actual_usd"] == pytest.approx(expected)


async def test_words_of_the_prompt_are_replaced_as_whole_words(backend: Backend) -> None:
    x = {"parameter": "words", "values": ["red", "green", ""]}
    y = {"parameter": "words", "values": ["apple", "pear tree"]}
    asked = grid(x, y, prompts=["a hundred red, red_ink and red apples: a red apple"])
    answer = await backend.http.post(BATCH, json=asked)
    assert answer.status_code == 202, answer.text
    assert prompts_of(await contents_of(backend, answer.json()["content_ids"])) == [
        f"a hundred {word}, red_ink and {word} apples: a {word} {thing}"
        for thing in ("apple", "pear tree")
        for word in ("red", "green", "")
    ]

    # Those of a prompt that is an axis itself are looked for in each.
    x = {"parameter": "words", "values": ["red", "blue"]}
    y = {"parameter": "prompt", "values": ["a red pear", "a fig"]}
    answer = await backend.http.post(BATCH, json={"grid": {"x": x, "y": y}})
    assert answer.status_code == 422
    assert answer.json()["field"] == "grid.x.values[0]"


def uses_of(cells: list[dict[str, Any]]) -> list[list[tuple[str, float]]]:
    return [[(use["name"], use["scale"]) for use in one["loras"]] for one in cells]


async def test_which_lora_is_an_axis_and_its_scale_another(start_backend: StartBackend) -> None:
    async with start_backend() as backend:
        ink, oil, kept = [
            (await backend.upload(kohya_lora(seed=n), name=name))["id"]
            for n, name in enumerate(("ink", "oil", "kept"))
        ]
        which = {
            "parameter": "which_lora",
            "values": [None, {"lora_model_id": ink, "scale": 0.7}, {"name": "oil"}],
        }
        loras = [{"lora_model_id": ink, "scale": 0.2}, {"lora_model_id": kept, "scale": 0.3}]
        answer = await backend.http.post(BATCH, json=grid(which, _SEED, loras=loras))
        assert answer.status_code == 202, answer.text
        made = answer.json()
        always = ("kept", 0.3)
        assert (
            uses_of(await contents_of(backend, made["content_ids"]))
            == [
                [always],
                [always, ("ink", 0.7)],
                [always, ("oil", 1)],
            ]
            * 2
        )
        shown = (await backend.http.get(f"{BATCH}/{made['batch_id']}")).json()
        assert shown["grid"]["x"]["values"] == [
            None,
            {"lora_model_id": ink, "scale": 0.7},
            {"name": "oil", "scale": 1.0},
        ]

        scales = {"parameter": "lora", "values": [0.4, 1.2]}
        answer = await backend.http.post(BATCH, json=grid(which, scales))
        assert answer.status_code == 202, answer.text
        assert uses_of(await contents_of(backend, answer.json()["content_ids"])) == [
            cell for scale in (0.4, 1.2) for cell in ([], [("ink", scale)], [("oil", scale)])
        ]

        # Each is named where it is wrong: a LoRA that is not there, and too many of them.
        values = [None, {"lora_model_id": oil}, {"lora_model_id": _ID}]
        answer = await backend.http.post(
            BATCH, json=grid(_SEED, {"parameter": "which_lora", "values": values}, loras=loras)
        )
        assert (answer.status_code, answer.json()["field"]) == (404, "grid.y.values[2]")
        answer = await backend.http.post(
            BATCH, json=grid(_SEED, {"parameter": "lora", "lora_model_id": _ID, "values": [1]})
        )
        assert (answer.status_code, answer.json()["field"]) == (404, "grid.y.lora_model_id")
        assert not (await backend.http.get(BATCH, params={"limit": 9})).json()["items"][2:]


async def test_what_the_model_refuses_is_named_by_the_grids_value(backend: Backend) -> None:
    for axis, hint in (
        ({"parameter": "size", "values": ["512x512", "512x516"]}, "8"),
        ({"parameter": "prompt", "values": ["a pear", "x" * 4001]}, "4000"),
        ({"parameter": "prompt", "values": ["a pear", " "]}, "blank"),
        ({"parameter": "words", "values": ["apple", "(pear:x)"]}, ""),
    ):
        own = axis["parameter"] == "prompt"
        asked = grid(_SEED, axis, prompts=[] if own else ["a red apple"])
        answer = await backend.http.post(BATCH, json=asked)
        problem = answer.json()
        assert answer.status_code in (400, 422), problem
        assert problem["field"] == "grid.y.values[1]", problem
        assert problem["detail"].startswith("grid.y.values[1]: "), problem
        assert hint in problem["detail"], problem


_ID = str(uuid.uuid4())
_CFG = {"parameter": "cfg", "values": [3, 5]}
_SEED = {"parameter": "seed", "values": [1, 2]}
_PROMPT = {"parameter": "prompt", "values": ["a", "b"]}
_WHICH = {"parameter": "which_lora", "values": [{"lora_model_id": _ID}]}


def on(parameter: str, *values: Any, **more: Any) -> dict[str, Any]:
    return {"parameter": parameter, "values": list(values), **more}


_NO_GRIDS: list[tuple[dict[str, Any], str, str]] = [
    (grid(_CFG, _CFG), "grid", "two different"),
    (grid(_CFG, on("seed", 1.5)), "grid.y.values[0]", "integer"),
    (grid(_CFG, on("seed", 1, "2")), "grid.y.values[1]", "not text"),
    (grid(_CFG, on("seed", 1, True)), "grid.y.values[1]", "not true"),
    (grid(_CFG, on("steps", 9, 0)), "grid.y.values[1]", "at least 1"),
    (grid(_CFG, on("seed", 3, 3)), "grid.y.values[1]", "different"),
    (grid(_CFG, on("lora", 1)), "grid.y.lora_model_id", "required"),
    (grid(_CFG, on("sampler", 1)), "grid.y.parameter", "'scheduler'"),
    (grid(_CFG, on("seed")), "grid.y.values", "at least 1"),
    (grid(_CFG, on("seed", *range(101))), "grid.y.values", "at most 100"),
    (grid(_CFG, on("seed", *range(60))), "grid", "120 cells"),
    (grid(_CFG, on("scheduler", "euler", "nobody's")), "grid.y.values[1]", "sampler"),
    (grid(_CFG, on("size", "512x512", "512")), "grid.y.values[1]", "WIDTHxHEIGHT"),
    (grid(_CFG, on("size", "512x512", 512)), "grid.y.values[1]", "string"),
    (grid(_CFG, on("size", "0x512")), "grid.y.values[0]", "at least 1"),
    (grid(_CFG, on("size", "512x512", "512x0512")), "grid.y.values[1]", "different"),
    (grid(_CFG, on("words", "red", "a\x00")), "grid.y.values[1]", "NUL"),
    (grid(_CFG, on("words", " ", "red")), "grid.y.values[0]", "blank"),
    (grid(_CFG, on("words", "pear", "red")), "grid.y.values[0]", "not in the prompt"),
    (grid(on("words", "red", "b"), on("words", "red ", "c")), "grid.y.values[0]", "x already"),
    (grid(_CFG, on("prompt", "a", {})), "grid.y.values[1]", "string"),
    (grid(_CFG, _PROMPT), "prompts", "at most 0"),
    ({"grid": {"x": _CFG, "y": _SEED}}, "prompts", "required"),
    (grid(_CFG, _SEED, prompts=[]), "prompts", "at least 1"),
    (grid(_CFG, on("which_lora", "ink")), "grid.y.values[0]", "object"),
    (
        grid(_CFG, on("which_lora", {"scale": 30, "name": "ink"})),
        "grid.y.values[0].scale",
        "most",
    ),
    (grid(_CFG, on("which_lora", None, None)), "grid.y.values[1]", "different"),
    (grid(_WHICH, on("lora", 1, lora_model_id=_ID)), "grid.y.lora_model_id", "other axis"),
    (grid(_CFG, _SEED, count=2), "request", "one prompt"),
    (grid(_CFG, _SEED, prompts=["a", "b"]), "request", "one prompt"),
    (grid(_CFG, _SEED, num_images=2), "request", "one prompt"),
    (grid(_CFG, {**_SEED, "lora_model_id": _ID}), "grid.y.lora_model_id", "only with"),
    (grid(_CFG, _SEED) | {"grid": {"x": _CFG}}, "grid.y", "required"),
]


async def test_what_is_no_grid_is_refused_by_its_field(backend: Backend) -> None:
    for asked, field, hint in _NO_GRIDS:
        answer = await backend.http.post(BATCH, json=asked)
        problem = answer.json()
        assert answer.status_code == 422, (asked, problem)
        assert problem["field"] == field, (asked, problem)
        assert hint in problem["detail"], (asked, problem)
