"""What the operator does not allow: words in prompts, and what the worker's checker flags."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.core.db import Database
from app.models.base import utc_now
from app.repositories.upkeep.maintenance import MaintenanceRepository
from app.services.marking.forbidden_words import ForbiddenWords, UnusableWords
from sdxl_contract.errors import ContentRefused
from sdxl_contract.result import ImageSafety, SafetyReport
from testkit.backend import Backend, StartBackend, ended
from testkit.doubles.inference_double import InferenceDouble

WORDS = ForbiddenWords(["Bad Thing", "straße", "naïve"])
TOKEN = "an-operator-s-token-of-32-characters"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "prompt",
    [
        "a bad thing",
        "BAD  thing!",
        "bad_thing",
        "ba\u200bd thing",
        "(bad:1.3) thing",
        "b(a)d thing",
        "\uff22\uff21\uff24 thing",  # full-width letters
        "a STRASSE at dusk",
        "a nai\u0308ve cat",
        "a naive cat",
    ],
)
def test_a_word_of_the_list_is_found_however_it_is_written(prompt: str) -> None:
    with pytest.raises(ContentRefused) as refused:
        WORDS.check(prompt)
    assert refused.value.details == {"field": "prompt", "reason": "prompt"}


@pytest.mark.parametrize("prompt", ["a bad badge thing", "bad things", "a good thing", ""])
def test_other_words_are_not(prompt: str) -> None:
    WORDS.check(prompt)
    ForbiddenWords().check("a bad thing")


def test_a_list_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableWords, match="PROMPT_BLOCKLIST_FILE cannot be read: No such file"):
        ForbiddenWords.from_file(tmp_path / "gone")
    (tmp_path / "words").write_bytes(b"\xff\xfe")
    with pytest.raises(UnusableWords, match="not UTF-8"):
        ForbiddenWords.from_file(tmp_path / "words")
    (tmp_path / "words").write_text("x" * 201)
    with pytest.raises(UnusableWords, match="at most 20000 lines of 200"):
        ForbiddenWords.from_file(tmp_path / "words")
    (tmp_path / "words").write_text("# a comment\n\nbad\n")
    with pytest.raises(ContentRefused):
        ForbiddenWords.from_file(tmp_path / "words").check("bad")


async def test_a_prompt_is_refused_at_every_door(
    start_backend: StartBackend, tmp_path: Path, inference: InferenceDouble
) -> None:
    async with start_backend() as backend:
        old = await backend.generate(prompt="a bad thing", seed=3)
        data = (await backend.http.get(old["image_url"])).content
    (tmp_path / "words").write_text("bad thing\n")
    async with start_backend(prompt_blocklist_file=tmp_path / "words") as backend:
        refused = await backend.generate(422, prompt="a bad thing")
        assert refused["error_code"] == "CONTENT_REFUSED"
        assert refused["field"] == "prompt"
        avatar = await backend.http.post(
            "/api/v1/identities/avatars", json={"name": "A", "base_prompt": "a bad"}
        )
        body = {"prompt": "thing", "avatar_id": avatar.json()["id"]}
        assert (await backend.generate(200, **body))["status"] == "succeeded"  # a comma between
        for path, sent in (
            ("/content/batch", {"json": {"prompts": ["fine", "a bad thing"]}}),
            (f"/content/{old['id']}/replay", {}),
            ("/replays", {"files": {"file": ("x.png", data)}}),
        ):
            answer = await backend.http.post(f"/api/v1{path}", **sent)
            assert answer.status_code == 422, path
            assert answer.json()["error_code"] == "CONTENT_REFUSED"
        openai = await backend.http.post("/v1/images/generations", json={"prompt": "a bad thing"})
        assert openai.json()["error"]["code"] == "content_policy_violation"
    assert len(inference.requests) == 2


async def test_what_the_worker_refuses_has_no_picture_and_is_not_asked_for_again(
    backend: Backend, inference: InferenceDouble
) -> None:
    inference.failures = [ContentRefused("refused", details={"reason": "picture", "score": 0.9})]
    content = await backend.http.post("/api/v1/content/generate", json={"prompt": "x"})
    shown = await ended(backend, content.json().get("id") or content.json()["details"]["id"])
    assert (shown["status"], shown["error"]["code"]) == ("failed", "CONTENT_REFUSED")
    assert shown["images"] == []
    assert len(inference.requests) == 1


async def test_what_the_checker_found_is_shown(
    backend: Backend, inference: InferenceDouble
) -> None:
    assert (await backend.generate())["safety"] is None
    inference.safety = SafetyReport(
        model="demo", threshold=0.5, images=[ImageSafety(score=0.25, flagged=False)]
    )
    content = await backend.generate()
    assert content["safety"] == {
        "model": "demo",
        "threshold": 0.5,
        "images": [{"score": 0.25, "flagged": False}],
    }


async def records(backend: Backend, **query: Any) -> list[dict[str, Any]]:
    answer = await backend.http.get("/api/v1/admin/generations", params=query, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def test_records_outlive_contents_and_hold_prompts_only_where_that_is_set(
    start_backend: StartBackend, database_url: Any
) -> None:
    token = {"admin_api_token": SecretStr(TOKEN)}
    async with start_backend(**token) as backend:
        await backend.generate(prompt="a secret")
        assert await records(backend) == []
    async with start_backend(**token, generation_log_days=30) as backend:
        content = await backend.generate(prompt="a secret", seed=7)
        gone = await backend.http.delete(f"/api/v1/content/{content['id']}")
        assert gone.status_code == 204
        [record] = await records(backend, sha256=content["images"][0]["sha256"])
        assert (record["content_id"], record["owner"]) == (content["id"], "local")
        assert (record["prompt"], record["base_model"]) == (None, "double")
        assert record["images"][0]["file_sha256"] == content["images"][0]["file_sha256"]
        assert record["parameters"]["seed"] == 7
        assert await records(backend, sha256="a" * 64) == []
        assert await records(backend, until="2020-01-01T00:00:00Z") == []
        assert (await backend.http.get("/api/v1/admin/generations")).status_code == 401
    async with start_backend(
        **token, generation_log_days=30, generation_log_prompts=True
    ) as backend:
        await backend.generate(prompt="a secret")
        assert (await records(backend))[0]["prompt"] == "a secret"
        database = Database(database_url)
        for days, left in ((1, 2), (-1, 0)):
            async with database.session() as session:
                await MaintenanceRepository(session).remove_records(
                    utc_now() - timedelta(days=days)
                )
            assert len(await records(backend)) == left
        await database.close()
