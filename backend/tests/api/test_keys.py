"""Keys that a key makes: what they may do, whose limits they use, when they end."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import URL

from app.core.db import Database
from app.core.security import key_digest, new_api_key
from app.repositories.access.api_keys import ApiKeyRepository
from app.services import callers
from testkit.backend import Backend, add_key

KEYS = "/api/v1/keys"
CONTENT = "/api/v1/content"


@pytest.fixture
async def mine(backend: Backend, database_url: URL) -> dict[str, str]:
    """The headers of a key that the operator made."""
    return await add_key(database_url, "local")


async def make(backend: Backend, headers: dict[str, str], name: str = "a bot's") -> dict[str, Any]:
    answer = await backend.http.post(KEYS, json={"name": name}, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def bearer(made: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {made['key']}"}


async def status(backend: Backend, headers: dict[str, str]) -> int:
    return int((await backend.http.get(CONTENT, headers=headers)).status_code)


async def test_a_key_makes_a_key_that_sees_the_same_and_is_shown_once(
    backend: Backend, mine: dict[str, str], database_url: URL
) -> None:
    avatar = {"name": "Ann", "base_prompt": "Ann"}
    path = "/api/v1/identities/avatars"
    await backend.http.post(path, json=avatar, headers=mine)
    made = await make(backend, mine, "  a bot's ")

    assert made["name"] == "a bot's"
    assert (await backend.http.get(path, headers=bearer(made))).json()["items"][0]["name"] == "Ann"
    listed = (await backend.http.get(KEYS, headers=mine)).json()["items"]
    assert [(one["name"], one["current"]) for one in listed] == [
        ("test", True), ("a bot's", False),
    ]  # fmt: skip
    assert listed[1]["made_by"] == listed[0]["id"]
    assert all("key" not in one for one in listed)
    other = await add_key(database_url, "other")
    assert len((await backend.http.get(KEYS, headers=other)).json()["items"]) == 1


async def test_a_key_that_was_made_makes_and_revokes_none_but_itself(
    backend: Backend, mine: dict[str, str]
) -> None:
    first, second = await make(backend, mine), await make(backend, mine)
    refused = [
        await backend.http.post(KEYS, json={"name": "x"}, headers=bearer(first)),
        await backend.http.delete(f"{KEYS}/{second['id']}", headers=bearer(first)),
        await backend.http.delete(f"{KEYS}/{second['made_by']}", headers=bearer(first)),
    ]

    assert [answer.status_code for answer in refused] == [403, 403, 403]
    own = await backend.http.delete(f"{KEYS}/{first['id']}", headers=bearer(first))
    assert own.status_code == 204
    assert [await status(backend, bearer(one)) for one in (first, second)] == [401, 200]


async def test_keys_of_the_operator_s_are_not_revoked_by_one_another(
    backend: Backend, mine: dict[str, str], database_url: URL
) -> None:
    sister, stranger = await add_key(database_url, "local"), await add_key(database_url, "other")
    made = await make(backend, sister)
    listed = (await backend.http.get(KEYS, headers=mine)).json()["items"]
    sisters = next(one["id"] for one in listed if one["id"] == made["made_by"])

    for key_id in (sisters, made["id"]):
        answer = await backend.http.delete(f"{KEYS}/{key_id}", headers=mine)
        assert answer.status_code == 403
        answer = await backend.http.delete(f"{KEYS}/{key_id}", headers=stranger)
        assert answer.status_code == 404


async def test_what_a_revoked_key_made_goes_with_it(
    backend: Backend, mine: dict[str, str], database_url: URL
) -> None:
    made = await make(backend, mine)
    signed_in = await backend.http.post("/api/v1/session", json={"api_key": made["key"]})
    cookie = {"Cookie": signed_in.headers["set-cookie"].partition(";")[0]}
    backend.http.cookies.clear()
    assert (await status(backend, bearer(made)), await status(backend, cookie)) == (200, 200)
    database = Database(database_url)
    async with database.session() as session:
        assert await ApiKeyRepository(session).revoke(uuid.UUID(made["made_by"]))
    await database.close()

    assert [await status(backend, one) for one in (mine, bearer(made), cookie)] == [401] * 3


async def test_a_page_that_is_signed_in_makes_no_key(
    backend: Backend, mine: dict[str, str]
) -> None:
    """What a page's script could do would outlast the session."""
    key = mine["Authorization"].removeprefix("Bearer ")
    await backend.http.post("/api/v1/session", json={"api_key": key})
    ours = {"X-Requested-With": "studio"}

    assert (await backend.http.post(KEYS, json={"name": "x"}, headers=ours)).status_code == 403
    assert (await backend.http.get(KEYS)).json()["items"][0]["current"]


async def test_the_first_key_is_not_made_by_whoever_asks(backend: Backend) -> None:
    answer = await backend.http.post(KEYS, json={"name": "x"})

    assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN")
    assert (await backend.http.get(KEYS)).json()["items"] == []
    assert (await backend.http.delete(f"{KEYS}/{uuid.uuid4()}")).status_code == 404


async def test_a_name_that_is_none_is_refused(backend: Backend, mine: dict[str, str]) -> None:
    for name in ("", "  ", "x" * 201, "a\x00b", None, 7):
        answer = await backend.http.post(KEYS, json={"name": name}, headers=mine)
        assert (answer.status_code, answer.json()["field"]) == (422, "name"), name


async def test_keys_that_a_key_makes_give_it_no_more_calls(
    backend: Backend, database_url: URL
) -> None:
    secret = new_api_key()
    database = Database(database_url)
    async with database.session() as session:
        await ApiKeyRepository(session).add(
            key_digest(secret),
            owner="local",
            name="few",
            requests_per_minute=6,
            max_open_contents=3,
        )
    headers = {"Authorization": f"Bearer {secret}"}
    made = [await make(backend, headers) for _ in range(3)]
    async with database.session() as session:
        kept = {
            (k.requests_per_minute, k.max_open_contents)
            for k in await ApiKeyRepository(session).valid_of("local")
        }
    await database.close()

    assert kept == {(6, 3)}
    # Three calls made them; three more are left, whichever of the four keys calls.
    said = [await status(backend, one) for one in (*map(bearer, made), headers)]
    assert said == [200, 200, 200, 429]


async def test_a_key_makes_so_many_at_most(
    backend: Backend, mine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "KEYS_OF_A_KEY_MAX", 2)
    made = [await make(backend, mine) for _ in range(2)]
    third = await backend.http.post(KEYS, json={"name": "x"}, headers=mine)

    assert (third.status_code, third.json()["error_code"]) == (409, "CONFLICT")
    await backend.http.delete(f"{KEYS}/{made[0]['id']}", headers=mine)
    await make(backend, mine)


async def test_no_key_outlives_one_that_is_revoked_while_it_is_made(
    backend: Backend, mine: dict[str, str], database_url: URL
) -> None:
    maker = uuid.UUID((await make(backend, mine))["made_by"])
    database = Database(database_url)

    async def revoke() -> None:
        async with database.session() as session:
            await ApiKeyRepository(session).revoke(maker)

    async with database.session() as session:
        keys = ApiKeyRepository(session)
        assert await keys.hold(maker)
        await keys.add("0" * 64, owner="local", name="late", made_by=maker)
        revoking = asyncio.create_task(revoke())
        await asyncio.sleep(0.3)
        assert not revoking.done(), "it must see the key that is being made"
    await revoking
    async with database.session() as session:
        assert await ApiKeyRepository(session).valid_of("local") == []
    await database.close()

    answer = await backend.http.post(KEYS, json={"name": "x"}, headers=mine)
    assert answer.status_code == 401
