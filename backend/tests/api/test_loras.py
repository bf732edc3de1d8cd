"""The LoRA library over HTTP: what is taken in, what is refused and why."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import pickle
import uuid
from typing import Any

import pytest

from app.core.settings import Settings
from app.services.storage import LocalStorage
from sdxl_contract.limits import BaseModelSignature
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora, safetensors_bytes, sd15_lora

UPLOAD = "/api/v1/loras/models/upload"
MODELS = "/api/v1/loras/models"


async def test_an_sdxl_lora_is_kept_with_what_its_header_says(
    backend: Backend, settings: Settings
) -> None:
    data = kohya_lora(rank=8)
    answer = await backend.http.post(
        UPLOAD,
        files={"file": ("x.safetensors", data)},
        data={"name": " Ink ", "description": "black lines", "tags": "ink, lines,ink"},
    )
    assert answer.status_code == 201, answer.text
    lora = answer.json()
    assert lora["name"] == "Ink"
    assert lora["tags"] == ["ink", "lines"]
    assert lora["sha256"] == hashlib.sha256(data).hexdigest()
    assert lora["size_bytes"] == len(data)
    assert (lora["base_model"], lora["algorithm"], lora["rank"], lora["modules"]) == (
        "SDXL", "lora", 8, 1,
    )  # fmt: skip
    assert lora["format"].startswith("kohya")
    assert lora["text_encoder"] is False
    assert lora["trigger_words"] == ["inkstyle"]
    stored = settings.data_dir / "objects/owners/local/loras" / f"{lora['sha256']}.safetensors"
    assert stored.read_bytes() == data
    assert (await backend.http.get(f"{MODELS}/{lora['id']}")).json() == lora
    assert (await backend.http.get(MODELS)).json()["items"] == [lora]


async def test_the_same_bytes_again_give_the_lora_that_is_there(backend: Backend) -> None:
    first = await backend.upload(kohya_lora())
    again = await backend.upload(kohya_lora(), name="Other", expected=200)
    assert again == first


async def test_the_same_bytes_at_once_are_kept_once(backend: Backend) -> None:
    async def upload() -> tuple[int, str]:
        answer = await backend.http.post(
            UPLOAD, files={"file": ("x", kohya_lora())}, data={"name": "Ink"}
        )
        return answer.status_code, answer.json()["id"]

    answers = await asyncio.gather(*(upload() for _ in range(4)))
    assert len({lora_id for _, lora_id in answers}) == 1
    assert sorted(status for status, _ in answers) == [200, 200, 200, 201]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (sd15_lora(), "SD 1"),
        (kohya_lora()[:-100], ""),
        (kohya_lora()[:40], ""),
        (pickle.dumps({"a": 1}), ""),
        (b"", ""),
        (b"<html>", ""),
        (safetensors_bytes({"model.weight": (4, 4)}), ""),
        (kohya_lora(width=641), ""),
    ],
    ids=["sd15", "truncated", "half-header", "pickle", "empty", "html", "no-lora", "misfit"],
)
async def test_what_is_no_sdxl_lora_is_refused(backend: Backend, data: bytes, says: str) -> None:
    problem = await backend.upload(data, expected=422)
    assert problem["error_code"] == "LORA_LOAD_FAILED"
    assert says in problem["detail"]
    assert (await backend.http.get(MODELS)).json()["items"] == []


async def test_a_lora_is_held_against_the_loaded_model(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.signature = BaseModelSignature(
        name="small", family="SDXL", cross_attention_dim=96, text_encoder_hidden_sizes=(32, 64)
    )
    async with start_backend() as backend:
        problem = await backend.upload(kohya_lora(), expected=422)
        assert "small" in problem["detail"]


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a" * 201}, "name"),
        ({"name": "a\x00"}, "name"),
        ({"name": "a", "description": "a" * 4001}, "description"),
        ({"name": "a", "tags": "[1]"}, "tags"),
        ({"name": "a", "tags": "a" * 51}, "tags"),
    ],
)
async def test_a_wrong_form_field_is_named(
    backend: Backend, form: dict[str, Any], field: str
) -> None:
    answer = await backend.http.post(UPLOAD, files={"file": ("x", kohya_lora())}, data=form)
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == field


async def test_an_upload_without_a_file_names_it(backend: Backend) -> None:
    answer = await backend.http.post(UPLOAD, data={"name": "a"})
    assert (answer.status_code, answer.json()["field"]) == (422, "file")


async def test_too_many_bytes_are_refused(start_backend: StartBackend) -> None:
    async with start_backend(max_upload_bytes=2048) as backend:
        problem = await backend.upload(kohya_lora(), expected=413)
        assert problem["error_code"] == "TOO_LARGE"
        # Over the slack for the form: refused before the end is read.
        huge = await backend.upload(kohya_lora(rank=64), expected=413)
        assert huge["error_code"] == "TOO_LARGE"


async def test_too_large_a_body_without_a_length_is_refused(backend: Backend) -> None:
    async def blocks() -> Any:
        for _ in range(40):
            yield b"x" * 65536

    answer = await backend.http.post(
        "/api/v1/content/generate",
        content=blocks(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413


async def test_a_deleted_lora_is_gone_with_its_file(backend: Backend, settings: Settings) -> None:
    lora = await backend.upload(kohya_lora())
    assert (await backend.http.delete(f"{MODELS}/{lora['id']}")).status_code == 204
    assert (await backend.http.get(f"{MODELS}/{lora['id']}")).status_code == 404
    assert (await backend.http.delete(f"{MODELS}/{lora['id']}")).status_code == 404
    assert list((settings.data_dir / "objects" / "owners").rglob("*.safetensors")) == []


async def test_a_lora_in_use_cannot_be_deleted(
    backend: Backend, inference: InferenceDouble
) -> None:
    lora = await backend.upload(kohya_lora())
    inference.gate.clear()
    content = await backend.generate(
        expected=202,
        loras=[{"lora_model_id": lora["id"]}],
        headers={"Prefer": "respond-async"},
    )
    answer = await backend.http.delete(f"{MODELS}/{lora['id']}")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "CONFLICT")
    await backend.http.delete(f"/api/v1/content/{content['id']}")
    inference.gate.set()
    assert (await backend.http.delete(f"{MODELS}/{lora['id']}")).status_code == 204


class FullDisk(LocalStorage):
    """Its disk is full while `is_full`."""

    is_full = True

    def _put(self, key: str, data: Any) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device", "/srv/secret")
        super()._put(key, data)


async def test_a_full_disk_fails_the_job_or_the_upload_and_nothing_else(
    start_backend: StartBackend, settings: Settings
) -> None:
    storage = FullDisk(settings)
    async with start_backend(storage=storage) as backend:
        problem = await backend.upload(kohya_lora(), expected=507)
        assert problem["error_code"] == "STORAGE_FAILED"
        assert "no space" in problem["detail"]
        content = await backend.generate()
        assert content["status"] == "failed"
        assert content["error"]["code"] == "STORAGE_FAILED"
        assert "no space" in content["error"]["message"]
        assert "secret" not in content["error"]["message"]
        storage.is_full = False
        assert (await backend.generate())["status"] == "succeeded"
        await backend.upload(kohya_lora())


async def test_avatars_are_made_changed_and_removed(backend: Backend) -> None:
    avatars = "/api/v1/identities/avatars"
    lora = await backend.upload(kohya_lora())
    answer = await backend.http.post(avatars, json={"name": "Mia", "base_prompt": "Mia"})
    assert answer.status_code == 201
    avatar = answer.json()
    assert (avatar["lora_scale"], avatar["lora_model_id"]) == (0.9, None)
    place = f"{avatars}/{avatar['id']}"
    changed = await backend.http.patch(place, json={"lora_model_id": lora["id"], "lora_scale": 0.5})
    assert changed.json()["lora_model_id"] == lora["id"]
    assert changed.json()["base_prompt"] == "Mia"
    assert (await backend.http.get(avatars)).json()["items"] == [changed.json()]
    kept = await backend.http.delete(f"{MODELS}/{lora['id']}")
    assert kept.status_code == 409
    assert (await backend.http.patch(place, json={"lora_model_id": None})).status_code == 200
    content = await backend.generate(avatar_id=avatar["id"])
    assert (await backend.http.delete(place)).status_code == 204
    assert (await backend.http.get(place)).status_code == 404
    left = (await backend.http.get(f"/api/v1/content/{content['id']}")).json()
    assert left["avatar_id"] is None


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"base_prompt": "x"}, 422, "name"),
        ({"name": "x", "base_prompt": " "}, 422, "base_prompt"),
        ({"name": "x", "base_prompt": "x", "lora_scale": 1.5}, 422, "lora_scale"),
        ({"name": "x", "base_prompt": "x", "lora_scale": -0.1}, 422, "lora_scale"),
        (
            {"name": "x", "base_prompt": "x", "lora_model_id": str(uuid.UUID(int=0))},
            404,
            "lora_model_id",
        ),
        ({"name": "x", "base_prompt": "x", "age": 5}, 422, "age"),
    ],
)
async def test_a_wrong_avatar_is_refused(
    backend: Backend, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await backend.http.post("/api/v1/identities/avatars", json=body)
    assert answer.status_code == status
    assert answer.json()["field"] == field
