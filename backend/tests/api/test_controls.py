"""Pictures that hold a drawing or lend it their look: an owner's own, signed at dispatch."""

from __future__ import annotations

import hashlib
import io
import uuid
from datetime import timedelta
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import URL, update

from app.models import InputImage
from app.models.base import utc_now
from app.services.upkeep.retention import remove_old
from sdxl_contract.limits import (
    AdapterInfo,
    AdapterKind,
    ControlInfo,
    ControlKind,
    ModelLimits,
)
from testkit.backend import Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble

IMAGES = "/api/v1/images"
LIMITS = ModelLimits(
    controls=(
        ControlInfo(name="lines", sha256="0" * 64, kind=ControlKind.CONTROLNET, bytes=9),
        ControlInfo(
            name="union", sha256="1" * 64, kind=ControlKind.CONTROLNET_UNION,
            types=("openpose", "depth"), bytes=9,
        ),
    ),
    adapters=(
        AdapterInfo(
            name="plus", sha256="2" * 64, kind=AdapterKind.PLUS, encoder_sha256="3" * 64, bytes=9
        ),
    ),
)  # fmt: skip


def solid(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def inference() -> InferenceDouble:
    return InferenceDouble(limits=LIMITS)


async def test_the_worker_gets_each_picture_and_draws_it_again_the_same(
    backend: Backend, inference: InferenceDouble
) -> None:
    lines, depth = solid("black"), solid("grey")
    ids = [(await backend.put_image(one))["id"] for one in (lines, depth)]
    controls = [
        {"model": "lines", "image": {"image_id": ids[0]}, "canny": {"low": 50}, "end": 0.5},
        {"model": "union", "type": "depth", "image": {"image_id": ids[1]}, "scale": 0.7},
    ]
    look = {"adapter": "plus", "image": {"image_id": ids[1]}, "scale": 0.6}
    content = await backend.generate(controls=controls, references=[look])
    [seen] = inference.requests[-1].references
    assert (seen.adapter, seen.scale) == ("plus", 0.6)
    assert (await backend.http.get(seen.image.url)).content == depth
    assert content["parameters"]["references"][0]["image"]["image_id"] == ids[1]
    one, two = inference.requests[-1].controls
    assert (one.model, one.end, one.canny and one.canny.low) == ("lines", 0.5, 50)
    assert (two.model, two.type, two.scale, two.start) == ("union", "depth", 0.7, 0.0)
    for control, data in ((one, lines), (two, depth)):
        assert control.image.sha256 == hashlib.sha256(data).hexdigest()
        assert (await backend.http.get(control.image.url)).content == data
    shown = content["parameters"]["controls"]
    assert [use["image"]["image_id"] for use in shown] == ids
    assert "url" not in str(shown)
    answer = await backend.http.post(f"/api/v1/content/{content['id']}/replay")
    await ended(backend, answer.json()["id"])
    again = inference.requests[-1]
    assert [held.model_copy(update={"image": None}) for held in again.controls] == [
        held.model_copy(update={"image": None}) for held in (one, two)
    ]
    assert again.references[0].image.sha256 == seen.image.sha256
    assert [held.image.sha256 for held in again.controls] == [one.image.sha256, two.image.sha256]


async def test_another_owner_s_picture_is_not_there(
    start_backend: StartBackend, database_url: URL
) -> None:
    keys = [await add_key(database_url, owner) for owner in ("ann", "ben")]
    async with start_backend() as backend:
        mine = await backend.put_image(solid("teal"), headers=keys[0])
        theirs = await backend.put_image(solid("red"), headers=keys[1])
        drawn = await backend.generate(headers=keys[1])
        for other in (theirs["id"], drawn["images"][0]["id"], str(uuid.uuid4())):
            held = [{"model": "lines", "image": {"image_id": one}} for one in (mine["id"], other)]
            refused = await backend.generate(expected=404, headers=keys[0], controls=held)
            assert refused["field"] == "controls[1].image.image_id"
            look = [{"adapter": "plus", "image": {"image_id": other}}]
            refused = await backend.generate(expected=404, headers=keys[0], references=look)
            assert refused["field"] == "references[0].image.image_id"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"model": "depth"}, "controls[0].model"),
        ({"model": ""}, "controls[0].model"),
        ({"model": "union"}, "controls[0].type"),
        ({"type": "depth"}, "controls[0].type"),
        ({"scale": 2.5}, "controls[0].scale"),
        ({"start": 0.5, "end": 0.5}, "controls[0]"),
        ({"canny": {"low": 9, "high": 8}}, "controls[0].canny"),
        ({"image": {"url": "https://example.com/a.png"}}, "controls[0].image.image_id"),
        ({"image": None}, "controls[0].image"),
        ({"strength": 1}, "controls[0].strength"),
    ],
    ids=str,
)
async def test_a_wrong_control_is_refused_by_field(
    backend: Backend, inference: InferenceDouble, wrong: dict[str, Any], field: str
) -> None:
    assert (await backend.http.get("/api/v1/model")).status_code == 200
    use = {"image_id": (await backend.put_image(solid("teal")))["id"]}
    refused = await backend.generate(
        expected=422, controls=[{"model": "lines", "image": use} | wrong]
    )
    assert refused["field"] == field
    five = [{"model": "lines", "image": use}] * 5
    assert (await backend.generate(expected=422, controls=five))["field"] == "controls"
    look = {"adapter": "plus", "image": use}
    for other, name in (
        ({"adapter": "face"}, ".adapter"), ({"scale": 2.5}, ".scale"),
        ({"start": 1}, ""), ({"image": {"image_id": "x"}}, ".image.image_id"),
    ):  # fmt: skip
        refused = await backend.generate(expected=422, references=[look | other])
        assert refused["field"] == f"references[0]{name}"
    assert not inference.requests


async def test_a_picture_that_a_content_is_held_by_stays_while_it_waits(
    backend: Backend, inference: InferenceDouble
) -> None:
    held, look, other = [
        await backend.put_image(solid(colour)) for colour in ("red", "green", "blue")
    ]
    services = backend.app.state.services
    controls = [{"model": "lines", "image": {"image_id": one}} for one in (held["id"], held["id"])]
    inference.gate.clear()
    try:
        asked = {"headers": {"Prefer": "respond-async"}, "controls": controls}
        asked["references"] = [{"adapter": "plus", "image": {"image_id": look["id"]}}]
        waiting = await backend.generate(expected=202, **asked)
        refused = await backend.http.delete(f"{IMAGES}/{held['id']}")
        assert (refused.status_code, refused.json()["details"]["contents"]) == (409, 1)
        async with services.database.session() as session:
            await session.execute(update(InputImage).values(used_at=utc_now() - timedelta(days=9)))
        await remove_old(services.database, services.storage, days=3)
        left = [one["id"] for one in (await backend.http.get(IMAGES)).json()["items"]]
        assert set(left) == {held["id"], look["id"]}
        assert other["id"] not in left
    finally:
        inference.gate.set()
    content = await ended(backend, waiting["id"])
    await remove_old(services.database, services.storage, days=3)
    assert (await backend.http.get(f"{IMAGES}/{held['id']}")).status_code == 404
    answer = await backend.http.post(f"/api/v1/content/{content['id']}/replay")
    assert answer.json()["details"] == {
        "reason": "picture_deleted",
        "field": "controls[0].image",
    }
