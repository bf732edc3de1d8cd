"""Samplers and formats that a caller chooses, and inputs that were deleted since."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import text

from testkit.backend import CONTENT, Backend, StartBackend, ended
from testkit.doubles.inference_double import SCHEDULERS, InferenceDouble
from testkit.loras.plain_bytes import kohya_lora, safetensors_bytes

ASYNC = {"Prefer": "respond-async"}


@pytest.mark.parametrize("spelling", ["lcm", "LCM", "LCMScheduler"])
async def test_a_sampler_is_asked_of_the_worker_kept_and_asked_again(
    backend: Backend, inference: InferenceDouble, spelling: str
) -> None:
    first = await backend.generate(scheduler=spelling, steps=4, cfg=1)
    assert first["parameters"]["scheduler"] == "lcm"
    again = await backend.http.post(f"{CONTENT}/{first['id']}/replay")
    assert (await ended(backend, again.json()["id"]))["parameters"]["scheduler"] == "lcm"
    assert [request.scheduler.value for request in inference.requests] == ["lcm", "lcm"]


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"scheduler": "warp"}, "scheduler", "GET /api/v1/model"),
        ({"scheduler": "heun"}, "scheduler", "it offers default, euler, lcm"),
        ({"scheduler": 7}, "scheduler", ""),
        ({"output_format": "gif"}, "output_format", "png"),
        ({"deadline_seconds": 0}, "deadline_seconds", "at least 1"),
        ({"deadline_seconds": 1e9}, "deadline_seconds", "at most 604800"),
    ],
)
@pytest.mark.parametrize("path", ["generate", "batch"])
async def test_what_cannot_be_chosen_is_named(
    backend: Backend, body: dict[str, Any], field: str, says: str, path: str
) -> None:
    ask = {"prompt": "x"} if path == "generate" else {"prompts": ["x"]}
    answer = await backend.http.post(f"{CONTENT}/{path}", json=ask | body)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert says in answer.json()["detail"]


async def test_the_model_lists_its_samplers(backend: Backend) -> None:
    assert (await backend.http.get("/api/v1/model")).json()["schedulers"] == SCHEDULERS


async def test_a_batch_has_a_sampler_a_format_and_a_deadline(
    backend: Backend, inference: InferenceDouble
) -> None:
    answer = await backend.http.post(
        f"{CONTENT}/batch",
        json={"prompts": ["a", "b"], "scheduler": "lcm", "output_format": "webp",
              "deadline_seconds": 600},
    )  # fmt: skip
    assert answer.status_code == 202, answer.text
    for content_id in answer.json()["content_ids"]:
        done = await ended(backend, content_id)
        assert done["parameters"]["scheduler"] == "lcm"
        assert done["deadline_at"] is not None
    assert {request.output_format.value for request in inference.requests} == {"webp"}


async def test_the_sampler_belongs_to_what_an_idempotency_key_stands_for(backend: Backend) -> None:
    key = {"Idempotency-Key": "one"}
    first = await backend.generate(headers=key, scheduler="DPM++ 2M SDE", expected=422)
    assert first["field"] == "scheduler"
    made = await backend.generate(headers=key, scheduler="LCM")
    assert (await backend.generate(headers=key, scheduler="lcm"))["id"] == made["id"]
    await backend.generate(headers=key, scheduler="euler", expected=409)


@pytest.mark.parametrize(
    ("name", "suffix", "media_type", "mark"),
    [("png", "png", "image/png", "PNG"), ("jpeg", "jpg", "image/jpeg", "JPEG"),
     ("webp", "webp", "image/webp", "WEBP")],
)  # fmt: skip
async def test_a_picture_is_kept_in_its_format(
    backend: Backend, name: str, suffix: str, media_type: str, mark: str
) -> None:
    done = await backend.generate(output_format=name)
    [image] = done["images"]
    assert image["url"].split("?")[0].endswith(f".{suffix}")
    answer = await backend.http.get(image["url"])
    assert answer.headers["content-type"] == media_type
    assert Image.open(io.BytesIO(answer.content)).format == mark
    small = await backend.http.get(image["thumbnail_url"])
    assert Image.open(io.BytesIO(small.content)).size == (256, 256)
    async with backend.app.state.services.database.session() as session:
        kept = await session.scalar(text("SELECT media_type FROM content_piece"))
    assert kept == media_type
    assert done["parameters"]["output_format"] == name


async def test_a_deleted_lora_is_an_error_with_its_name(
    backend: Backend, inference: InferenceDouble
) -> None:
    lora = await backend.upload(kohya_lora(), name="Sepia")
    use: dict[str, Any] = {"loras": [{"lora_model_id": lora["id"]}]}
    first = await backend.generate(**use)
    place = f"/api/v1/loras/models/{lora['id']}"
    assert (await backend.http.delete(place)).status_code == 204
    replay = await backend.http.post(f"{CONTENT}/{first['id']}/replay")
    assert replay.status_code == 409
    assert "'Sepia'" in replay.json()["detail"]
    gone = await backend.generate(expected=404, **use)
    assert (gone["field"], gone["detail"]) == (
        "loras[0].lora_model_id", "The LoRA 'Sepia' was deleted.",
    )  # fmt: skip
    batch = await backend.http.post(f"{CONTENT}/batch", json={"prompts": ["x"]} | use)
    assert batch.status_code == 404
    assert len(inference.requests) == 1


async def test_a_lora_that_goes_between_acceptance_and_drawing_ends_its_content_with_its_name(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    async with start_backend() as backend:
        lora = await backend.upload(kohya_lora(), name="Sepia")
        inference.gate.clear()
        for _ in range(2):  # both runners
            await backend.generate(expected=202, headers=ASYNC)
        asked = await backend.generate(
            expected=202, headers=ASYNC, loras=[{"lora_model_id": lora["id"]}]
        )
        async with backend.app.state.services.database.session() as session:
            await session.execute(text("DELETE FROM lora_model"))
        inference.gate.set()
        done = await ended(backend, asked["id"])
        assert done["error"]["message"] == "the LoRA 'Sepia' was deleted"


async def test_an_avatar_whose_lora_is_gone_is_named(backend: Backend) -> None:
    lora = await backend.upload(kohya_lora())
    avatar = await backend.http.post(
        "/api/v1/identities/avatars",
        json={"name": "Mia", "base_prompt": "Mia", "lora_model_id": lora["id"]},
    )
    async with backend.app.state.services.database.session() as session:
        # No call can do so: as after a damaged restore.
        constraint = "fk_avatar_lora_model_id"
        await session.execute(text(f"ALTER TABLE avatar DROP CONSTRAINT {constraint}"))
        await session.execute(text("DELETE FROM lora_model"))
    answer = await backend.generate(expected=409, avatar_id=avatar.json()["id"])
    assert (answer["field"], "'Mia'" in answer["detail"]) == ("avatar_id", True)


async def test_a_lora_for_few_steps_suggests_its_sampler(backend: Backend) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": (640, 4),
    }
    told = await backend.upload(
        safetensors_bytes(shapes, {"modelspec.title": "sdxl_lightning_8step_lora"}), name="fast"
    )
    named = await backend.upload(safetensors_bytes(shapes, seed=1), name="LCM LoRA")
    other = await backend.upload(safetensors_bytes(shapes, seed=2), name="Ink")
    names = ("suggested_scheduler", "suggested_steps", "suggested_cfg")
    assert [told[name] for name in names] == ["euler_trailing", 8, 1.0]
    assert [named[name] for name in names] == ["lcm", 4, 1.0]
    assert [other[name] for name in names] == [None] * 3


async def test_a_lora_is_held_against_no_model_that_was_never_seen(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.is_up = False
    async with start_backend() as backend:
        # Narrower than SDXL: there are small models, and this may be for the one to come.
        lora = await backend.upload(kohya_lora(context=160, width=80))
        assert lora["modules"] == 1
        foreign = await backend.http.post(
            "/api/v1/loras/models/upload",
            files={"file": ("x", kohya_lora(context=768, width=320))},
            data={"name": "old"},
        )
        assert (foreign.status_code, foreign.json()["error_code"]) == (422, "LORA_LOAD_FAILED")


async def test_an_avatar_s_sampler_is_used_where_the_request_names_none(
    backend: Backend, inference: InferenceDouble
) -> None:
    avatars = "/api/v1/identities/avatars"
    body = {"name": "Mia", "base_prompt": "Mia", "scheduler": "LCM"}
    avatar = (await backend.http.post(avatars, json=body)).json()
    assert avatar["scheduler"] == "lcm"
    place = f"{avatars}/{avatar['id']}"
    asked: list[dict[str, Any]] = [{}, {"scheduler": "euler"}, {"scheduler": "default"}]
    for more in asked:
        await backend.generate(avatar_id=avatar["id"], **more)
    await backend.generate()
    await backend.http.patch(place, json={"scheduler": "heun"})
    refused = await backend.generate(expected=422, avatar_id=avatar["id"])
    assert (refused["field"], "heun" in refused["detail"]) == ("avatar_id", True)
    refused = await backend.generate(expected=422, avatar_id=avatar["id"], scheduler="heun")
    assert refused["field"] == "scheduler"
    changed = await backend.http.patch(place, json={"scheduler": None})
    assert changed.json()["scheduler"] is None
    await backend.generate(avatar_id=avatar["id"])
    wrong = await backend.http.patch(place, json={"scheduler": "no such"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "scheduler")
    used = [request.scheduler.value for request in inference.requests]
    assert used == ["lcm", "euler", "default", "default", "default"]


async def test_an_avatar_s_prompts_are_read_when_they_are_written(backend: Backend) -> None:
    avatars = "/api/v1/identities/avatars"
    made = await backend.http.post(avatars, json={"name": "Mia", "base_prompt": "(Mia:1.2)"})
    place = f"{avatars}/{made.json()['id']}"
    for wrong in ("(Mia:much)", "<lora:x:1>", "(Mia):1.5"):
        for field in ("base_prompt", "negative_prompt"):
            body = {"name": "Eve", "base_prompt": "Eve", field: wrong}
            for answer in (
                await backend.http.post(avatars, json=body),
                await backend.http.patch(place, json={field: wrong}),
            ):
                assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    assert (await backend.http.patch(place, json={"name": "Mia B."})).status_code == 200
