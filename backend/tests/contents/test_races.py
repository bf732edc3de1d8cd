"""Two calls at the same moment, and a database that goes away between two steps of one call."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError

from app.core.settings import Settings
from app.repositories.attempts import AttemptRepository
from app.services.contents import accepting as content
from app.services.contents.drafts import Draft, draft_content
from app.services.storage import LocalStorage
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

AVATARS = "/api/v1/identities/avatars"
CONTENT = "/api/v1/content"
MODELS = "/api/v1/loras/models"


async def test_changing_and_removing_an_avatar_at_once_is_never_the_servers_fault(
    backend: Backend,
) -> None:
    seen: set[int] = set()
    for _ in range(8):
        made = await backend.http.post(AVATARS, json={"name": "Ann", "base_prompt": "Ann"})
        place = f"{AVATARS}/{made.json()['id']}"
        answers = await asyncio.gather(
            *(backend.http.patch(place, json={"name": f"{n}"}) for n in range(4)),
            *(backend.http.delete(place) for _ in range(4)),
        )
        seen |= {answer.status_code for answer in answers}
        assert [answer.status_code for answer in answers[4:]].count(204) == 1
    assert seen <= {200, 204, 404}


async def test_an_avatar_that_goes_while_a_content_is_accepted_is_a_404(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    avatar_id = ""

    async def draft_then_remove(*arguments: Any) -> Draft:
        draft = await draft_content(*arguments)
        await backend.http.delete(f"{AVATARS}/{avatar_id}")
        return draft

    monkeypatch.setattr(content, "draft_content", draft_then_remove)
    for path, body in (("generate", {"prompt": "x"}), ("batch", {"prompts": ["x"]})):
        made = await backend.http.post(AVATARS, json={"name": "Ann", "base_prompt": "Ann"})
        avatar_id = made.json()["id"]
        answer = await backend.http.post(f"{CONTENT}/{path}", json=body | {"avatar_id": avatar_id})
        assert answer.status_code == 404
        assert answer.json()["field"] == "avatar_id"


async def test_a_picture_whose_end_was_written_but_not_heard_of_keeps_its_file(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = AttemptRepository.finish

    async def finish_then_break(self: AttemptRepository, *arguments: Any) -> bool:
        assert await finish(self, *arguments)
        raise psycopg.OperationalError("the connection broke")

    monkeypatch.setattr(AttemptRepository, "finish", finish_then_break)
    content = await backend.generate()
    assert content["status"] == "succeeded"
    picture = await backend.http.get(content["images"][0]["url"])
    assert picture.status_code == 200
    assert hashlib.sha256(picture.content).hexdigest() == content["images"][0]["file_sha256"]


class BreaksConnections(LocalStorage):
    """Every connection to the database breaks just before something is deleted."""

    def __init__(self, settings: Settings, url: URL) -> None:
        super().__init__(settings)
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)

    async def delete(self, key: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await super().delete(key)


async def test_a_lora_is_never_listed_without_its_file(
    start_backend: StartBackend, settings: Settings, database_url: URL
) -> None:
    storage = BreaksConnections(settings, database_url)
    async with start_backend(storage=storage) as backend:
        lora = await backend.upload(kohya_lora())
        await backend.http.delete(f"{MODELS}/{lora['id']}")
        for _ in range(50):
            listed = await backend.http.get(MODELS)
            if listed.status_code == 200:
                break
            await asyncio.sleep(0.1)
        there = await storage.exists(f"owners/local/loras/{lora['sha256']}.safetensors")
        assert [item["id"] for item in listed.json()["items"]] == ([lora["id"]] if there else [])


@pytest.mark.parametrize(
    ("path", "body"),
    [("generate", {"prompt": "x"}), ("batch", {"prompts": ["x"]})],
)
async def test_a_call_repeated_at_once_takes_one_place_and_is_not_refused(
    start_backend: StartBackend, inference: InferenceDouble, path: str, body: dict[str, Any]
) -> None:
    inference.gate.clear()
    headers = {"Idempotency-Key": "order 7", "Prefer": "respond-async"}
    async with start_backend(max_open_contents=1) as backend:
        answers = await asyncio.gather(
            *(backend.http.post(f"{CONTENT}/{path}", json=body, headers=headers) for _ in range(12))
        )
        assert [answer.status_code for answer in answers] == [202] * 12
        assert len({answer.headers["location"] for answer in answers}) == 1
        inference.gate.set()


async def test_what_is_accepted_stays_so_when_the_database_goes_away_during_the_wait(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("the connection was closed"))

    with monkeypatch.context() as patch:
        patch.setattr(backend.app.state.services.contents, "wait", lose)
        answer = await backend.http.post(f"{CONTENT}/generate", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    place = answer.headers["location"]
    assert (await backend.http.get(place)).json()["id"] == answer.json()["id"]
