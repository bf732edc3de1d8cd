"""Textual inversions: kept for each owner, found in words, fetched by the worker, let go."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import URL

from app.services.upkeep.sweep import sweep
from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import EMBEDDING_MAX_BYTES
from sdxl_contract.prompts.embedding_file import count_vectors
from testkit.backend import CONTENT, Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import safetensors_bytes

EMBEDDINGS = "/api/v1/embeddings"
WIDTHS = (768, 1280)


def embedding_bytes(vectors: int = 2, tag: str = "", names: str = "lg") -> bytes:
    shapes = {f"clip_{name}": (vectors, width) for name, width in zip(names, WIDTHS, strict=True)}
    return safetensors_bytes(shapes, {"tag": tag})


async def keep(
    backend: Backend, name: str, data: bytes | None = None, expected: int = 201, **more: Any
) -> Any:
    data = embedding_bytes(tag=name) if data is None else data
    answer = await backend.http.post(
        EMBEDDINGS, files={"file": ("a.safetensors", data)}, data={"name": name}, **more
    )
    assert answer.status_code == expected, answer.text
    return answer.json()


async def test_one_is_kept_once_under_a_word_of_its_own(backend: Backend) -> None:
    data = embedding_bytes(3)
    first = await keep(backend, "Bad-hands_5", data)
    assert first["vectors"] == 3
    assert first["sha256"] == hashlib.sha256(data).hexdigest()
    assert (await keep(backend, "other", data, 200))["id"] == first["id"]
    refused = await keep(backend, "bad-HANDS_5", embedding_bytes(4), 409)
    assert (refused["field"], refused["details"]["reason"]) == ("name", "name_taken")
    assert (await backend.http.get(EMBEDDINGS)).json()["items"] == [first]
    assert (await backend.http.get(f"{EMBEDDINGS}/{first['id']}")).json() == first
    assert (await backend.http.delete(f"{EMBEDDINGS}/{first['id']}")).status_code == 204
    assert (await backend.http.get(EMBEDDINGS)).json()["items"] == []
    await keep(backend, "bad-HANDS_5", data)


@pytest.mark.parametrize(
    ("data", "name", "status", "says"),
    [
        (b"no file", "style", 422, "not safetensors"),
        (embedding_bytes()[:-8], "style", 422, "not safetensors"),
        (embedding_bytes(names="la"), "style", 422, "clip_l and clip_g"),
        (embedding_bytes(76), "style", 422, "has 76 vectors"),
        (embedding_bytes(tag="x" * 2**16), "style", 422, "at most 65536 are read"),
        (b"\0" * (EMBEDDING_MAX_BYTES + 1), "style", 413, str(EMBEDDING_MAX_BYTES)),
        (embedding_bytes(), "two words", 422, "name"),
        (embedding_bytes(), "a:b", 422, "name"),
        (embedding_bytes(), "x" * 65, 422, "name"),
    ],
)
async def test_what_cannot_be_kept_is_refused(
    backend: Backend, data: bytes, name: str, status: int, says: str
) -> None:
    refused = await keep(backend, name, data, status)
    assert says in refused["detail"]
    assert (await backend.http.get(EMBEDDINGS)).json()["items"] == []


async def test_its_word_is_fetched_by_the_worker_and_by_every_replay(
    backend: Backend, inference: InferenceDouble
) -> None:
    kept = await keep(backend, "mystyle")
    content = await backend.generate(
        prompt="a MyStyle fig", negative_prompt="neg", embeddings=[{"name": "MYSTYLE"}]
    )
    [used] = content["parameters"]["embeddings"]
    assert used == {"embedding_id": kept["id"], "token": "mystyle", "sha256": kept["sha256"]}
    replay = await backend.http.post(f"{CONTENT}/{content['id']}/replay")
    await ended(backend, replay.json()["id"])
    assert len(inference.requests) == 2
    for request in inference.requests:
        [asked] = request.embeddings
        assert (asked.token, asked.sha256) == ("mystyle", kept["sha256"])
        data = (await backend.http.get(asked.url)).content
        assert hashlib.sha256(data).hexdigest() == kept["sha256"]
    # By another word; and none that was not asked for where words are prose.
    await backend.generate(prompt="a fig", embeddings=[{"embedding_id": kept["id"], "word": "fig"}])
    assert inference.requests[-1].embeddings[0].token == "fig"
    await backend.generate(prompt="a mystyle fig")
    assert inference.requests[-1].embeddings == []


async def test_as_a1111_reads_words_names_are_found_unless_they_are_said(
    backend: Backend, inference: InferenceDouble
) -> None:
    for name in ("mystyle", "negXL_D", "other"):
        await keep(backend, name)
    said: dict[str, Any] = {"prompt": "a (mystyle:1.2) fig", "prompt_syntax": "a1111"}
    await backend.generate(**said, negative_prompt="NegXL_D, others")
    assert [one.token for one in inference.requests[-1].embeddings] == ["mystyle", "negXL_D"]
    await backend.generate(**said, embeddings=[])
    assert inference.requests[-1].embeddings == []
    for number in range(9):
        await keep(backend, f"w{number}")
    words = " ".join(f"w{number}" for number in range(9))
    refused = await backend.generate(422, prompt=words, prompt_syntax="a1111")
    assert refused["field"] == "embeddings"


@pytest.mark.parametrize(
    ("uses", "status", "field"),
    [
        ([{"name": "absent"}], 404, "embeddings[0].name"),
        ([{"embedding_id": "00000000-0000-0000-0000-000000000001"}], 404,
         "embeddings[0].embedding_id"),
        ([{"name": "mystyle"}], 422, "embeddings[0]"),
        ([{"name": "mystyle", "word": "fig"}, {"name": "other", "word": "FIG"}], 422,
         "embeddings[1]"),
        ([{"name": "mystyle", "word": "two words"}], 422, "embeddings[0].word"),
        ([{}], 422, "embeddings[0]"),
        ([{"name": "mystyle", "word": "fig"}] * 9, 422, "embeddings"),
    ],
)  # fmt: skip
async def test_a_wrong_wish_is_refused_by_name(
    backend: Backend, uses: list[dict[str, Any]], status: int, field: str
) -> None:
    for name in ("mystyle", "other"):
        await keep(backend, name)
    refused = await backend.generate(status, prompt="a fig", embeddings=uses)
    assert refused["field"] == field


async def test_nobody_sees_or_uses_another_s(
    backend: Backend, inference: InferenceDouble, database_url: URL
) -> None:
    own, foreign = await add_key(database_url, "ann"), await add_key(database_url, "ben")
    kept = await keep(backend, "mystyle", headers=own)
    backend.http.headers.update(foreign)
    assert (await backend.http.get(EMBEDDINGS)).json()["items"] == []
    place = f"{EMBEDDINGS}/{kept['id']}"
    assert (await backend.http.get(place)).status_code == 404
    assert (await backend.http.delete(place)).status_code == 404
    for use in ({"name": "mystyle"}, {"embedding_id": kept["id"]}):
        await backend.generate(404, prompt="a mystyle", embeddings=[use])
    await backend.generate(prompt="a mystyle", prompt_syntax="a1111")
    assert inference.requests[-1].embeddings == []


async def test_one_that_was_deleted_is_missed_by_its_word(
    backend: Backend, inference: InferenceDouble
) -> None:
    kept = await keep(backend, "mystyle")
    said: dict[str, Any] = {"prompt": "a mystyle fig", "embeddings": [{"name": "mystyle"}]}
    content = await backend.generate(**said)
    inference.gate.clear()
    waiting = await backend.http.post(
        f"{CONTENT}/generate", json=said, headers={"Prefer": "respond-async"}
    )
    in_use = await backend.http.delete(f"{EMBEDDINGS}/{kept['id']}")
    assert (in_use.status_code, in_use.json()["details"]["reason"]) == (409, "in_use")
    inference.gate.set()
    await ended(backend, waiting.json()["id"])
    assert (await backend.http.delete(f"{EMBEDDINGS}/{kept['id']}")).status_code == 204
    refused = await backend.http.post(f"{CONTENT}/{content['id']}/replay")
    assert refused.status_code == 409
    details = refused.json()["details"]
    assert (details["reason"], details["name"]) == ("embedding_deleted", "mystyle")


def test_a_file_for_other_encoders_is_refused_once_the_model_is_known() -> None:
    data = embedding_bytes(5)
    assert count_vectors(data, None, "file") == count_vectors(data, WIDTHS, "file") == 5
    with pytest.raises(LoraLoadFailed, match="clip_l is 5x768: the model wants n x 32"):
        count_vectors(data, (32, 32), "file")


async def test_what_was_taken_down_is_refused_everywhere(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    token = "an-operator-s-token-of-32-characters"
    async with start_backend(admin_api_token=SecretStr(token)) as backend:
        hook = await backend.http.post(
            "/api/v1/webhooks",
            json={"url": "https://example.com/", "events": ["embedding.taken_down"]},
        )
        kept = await keep(backend, "mystyle")
        said: dict[str, Any] = {"prompt": "a mystyle fig", "embeddings": [{"name": "mystyle"}]}
        content = await backend.generate(**said)
        url = inference.requests[-1].embeddings[0].url
        ordered = await backend.http.post(
            "/api/v1/admin/takedowns",
            json={"kind": "lora", "value": kept["sha256"], "reason": "asked for"},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert ordered.status_code == 201
        assert (await backend.http.get(url)).status_code == 404
        await backend.generate(404, **said)
        replay = await backend.http.post(f"{CONTENT}/{content['id']}/replay")
        assert replay.json()["details"]["reason"] == "embedding_deleted"
        await backend.generate(prompt="a mystyle", prompt_syntax="a1111")
        assert inference.requests[-1].embeddings == []
        refused = await keep(backend, "again", embedding_bytes(tag="mystyle"), 422)
        assert refused["details"]["reason"] == "taken_down"
        place = f"/api/v1/webhooks/{hook.json()['id']}/deliveries"
        [told] = (await backend.http.get(place)).json()["items"]
        assert (told["type"], told["content_id"]) == ("embedding.taken_down", kept["id"])


async def test_a_sweep_knows_its_file(backend: Backend) -> None:
    kept = await keep(backend, "mystyle")
    services = backend.app.state.services
    orphan = "owners/local/embeddings/" + "0" * 64 + ".safetensors"
    await services.storage.put(orphan, b"left behind")
    swept = await sweep(services.database, services.storage, 0.0)
    assert (swept.removed, swept.missing_objects) == (1, 0)
    key = f"owners/local/embeddings/{kept['sha256']}.safetensors"
    assert await services.storage.exists(key)
    await services.storage.delete(key)
    assert (await sweep(services.database, services.storage, 0.0)).missing == [key]


async def test_a_receipt_finds_its_bytes_under_any_name_and_no_other_word(
    backend: Backend, inference: InferenceDouble
) -> None:
    kept = await keep(backend, "mystyle")
    await keep(backend, "fig")
    content = await backend.generate(
        prompt="a mystyle fig", prompt_syntax="a1111", seed=5, embeddings=[{"name": "mystyle"}]
    )
    file = {"file": ("x.png", (await backend.http.get(content["image_url"])).content)}
    assert (await backend.http.delete(f"{EMBEDDINGS}/{kept['id']}")).status_code == 204
    refused = (await backend.http.post("/api/v1/replays", files=file)).json()
    assert refused["details"]["reason"] == "embeddings_missing"
    assert refused["details"]["missing"] == [{"name": "mystyle", "sha256": kept["sha256"]}]

    await keep(backend, "another", embedding_bytes(tag="mystyle"))
    accepted = await backend.http.post("/api/v1/replays", files=file)
    assert accepted.status_code == 202, accepted.text
    again = await ended(backend, accepted.json()["id"])
    assert [one.token for one in inference.requests[-1].embeddings] == ["mystyle"]
    assert again["images"][0]["sha256"] == content["images"][0]["sha256"]
