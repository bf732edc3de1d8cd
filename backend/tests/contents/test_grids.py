"""X/Y grids kept by the backend: asked for in one call, each cell with its own values."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from testkit.backend import Backend, StartBackend
from testkit.lora_bytes import kohya_lora

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


_CFG = {"parameter": "cfg", "values": [3, 5]}
_SEED = {"parameter": "seed", "values": [1, 2]}


@pytest.mark.parametrize(
    ("asked", "field", "hint"),
    [
        (grid(_CFG, _CFG), "grid", "two different"),
        (grid(_CFG, {"parameter": "seed", "values": [1.5]}), "grid.y", "1.5 is no seed"),
        (grid(_CFG, {"parameter": "steps", "values": [0]}), "grid.y", "0 is no steps"),
        (grid(_CFG, {"parameter": "seed", "values": [3, 3]}), "grid.y", "different"),
        (grid(_CFG, {"parameter": "lora", "values": [1]}), "grid.y", "lora_model_id"),
        (grid(_CFG, {"parameter": "sampler", "values": [1]}), "grid.y.parameter", "seed"),
        (grid(_CFG, {"parameter": "seed", "values": []}), "grid.y.values", "at least 1"),
        (grid(_CFG, {"parameter": "seed", "values": list(range(60))}), "grid", "120 cells"),
        (grid(_CFG, _SEED, count=2), "", "one prompt"),
        (grid(_CFG, _SEED, prompts=["a", "b"]), "", "one prompt"),
        (grid(_CFG, _SEED, num_images=2), "", "one prompt"),
        (grid(_CFG, {**_SEED, "lora_model_id": str(uuid.uuid4())}), "grid.y", "lora_model_id"),
    ],
)
async def test_what_is_no_grid_is_refused_by_its_field(
    backend: Backend, asked: dict[str, Any], field: str, hint: str
) -> None:
    answer = await backend.http.post(BATCH, json=asked)
    problem = answer.json()

    assert answer.status_code == 422, problem
    assert hint in problem["detail"], problem
    assert field in problem["detail"], problem
