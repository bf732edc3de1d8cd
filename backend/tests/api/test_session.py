"""The page's login: a cookie instead of the key, and what other sites' pages can't do with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import URL, text

from app.core.db import Database
from app.core.security import SESSION_COOKIE, key_digest, new_api_key
from app.repositories.access.api_keys import ApiKeyRepository
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble

SESSION = "/api/v1/session"
AVATARS = "/api/v1/identities/avatars"
OURS = {"X-Requested-With": "studio"}
AVATAR = {"name": "Ann", "base_prompt": "Ann"}


async def make_key(url: URL, owner: str = "local", name: str = "Ann's") -> str:
    database = Database(url)
    key = new_api_key()
    async with database.session() as session:
        await ApiKeyRepository(session).add(key_digest(key), owner=owner, name=name)
    await database.close()
    return key


async def sign_in(backend: Backend, key: str) -> Any:
    answer = await backend.http.post(SESSION, json={"api_key": key})
    assert answer.status_code == 204, answer.text
    return answer


async def test_without_keys_nobody_needs_to_sign_in(backend: Backend) -> None:
    answer = await backend.http.get(SESSION)
    assert answer.json() == {"signed_in": False, "keys_required": False, "name": None}
    foreign = await backend.http.get(SESSION, headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403


async def test_a_page_signs_in_works_and_signs_out(backend: Backend, database_url: URL) -> None:
    key = await make_key(database_url)
    nobody = {"signed_in": False, "keys_required": True, "name": None}
    assert (await backend.http.get(SESSION)).json() == nobody
    assert (await backend.http.get(AVATARS)).status_code == 401
    cookie = (await sign_in(backend, key)).headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")}
    assert {"httponly", "samesite=strict", "path=/api/v1", "max-age=604800"} <= parts
    assert "secure" not in parts
    assert key not in cookie
    me = {"signed_in": True, "keys_required": True, "name": "Ann's"}
    assert (await backend.http.get(SESSION)).json() == me
    assert (await backend.http.get(AVATARS)).status_code == 200
    assert (await backend.http.post(AVATARS, json=AVATAR, headers=OURS)).status_code == 201
    assert (await backend.http.delete(SESSION, headers=OURS)).status_code == 204
    assert (await backend.http.get(SESSION)).json() == nobody
    assert (await backend.http.get(AVATARS)).status_code == 401


async def test_only_the_cookies_digest_is_kept(backend: Backend, database_url: URL) -> None:
    await sign_in(backend, await make_key(database_url))
    token = backend.http.cookies[SESSION_COOKIE]
    async with backend.app.state.services.database.session() as session:
        rows = (await session.execute(text("SELECT * FROM page_session"))).mappings().all()
    assert [row["token_sha256"] for row in rows] == [key_digest(token)]
    assert token not in str(rows)


@pytest.mark.parametrize("headers", [{}, {"X-Requested-With": "XMLHttpRequest"}])
async def test_a_change_by_cookie_needs_the_pages_header(
    backend: Backend, database_url: URL, headers: dict[str, str]
) -> None:
    key = await make_key(database_url)
    await sign_in(backend, key)
    for method, path in (("POST", AVATARS), ("DELETE", SESSION)):
        answer = await backend.http.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN")
    assert (await backend.http.get(AVATARS)).json()["items"] == []
    by_key = {"Authorization": f"Bearer {key}"}
    assert (await backend.http.post(AVATARS, json=AVATAR, headers=by_key)).status_code == 201


async def test_a_wrong_key_does_not_sign_in(backend: Backend, database_url: URL) -> None:
    await make_key(database_url)
    answer = await backend.http.post(SESSION, json={"api_key": "sdxl_wrong"})
    assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHORIZED")
    assert "set-cookie" not in answer.headers
    assert "sdxl_wrong" not in answer.text
    for body in ({}, {"api_key": ""}, {"api_key": 7}, {"api_key": "sdxl_long" * 99}):
        refused = await backend.http.post(SESSION, json=body)
        assert (refused.status_code, refused.json()["field"]) == (422, "api_key")
        assert "sdxl_long" not in refused.text


async def test_a_form_of_another_site_cannot_sign_a_visitor_in(
    backend: Backend, database_url: URL
) -> None:
    key = await make_key(database_url)
    body = f'{{"api_key": "{key}"}}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await backend.http.post(SESSION, content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415
        assert "set-cookie" not in answer.headers
        assert key not in answer.text


async def test_revoking_a_key_ends_its_sessions_only(backend: Backend, database_url: URL) -> None:
    first, second = await make_key(database_url, name="1"), await make_key(database_url, name="2")
    await sign_in(backend, first)
    other = dict(backend.http.cookies)
    backend.http.cookies.clear()
    await sign_in(backend, second)
    async with backend.app.state.services.database.session() as session:
        keys = ApiKeyRepository(session)
        [revoked] = [key for key in await keys.list() if key.name == "1"]
        await keys.revoke(revoked.id)
    assert (await backend.http.get(AVATARS)).status_code == 200
    backend.http.cookies.clear()
    backend.http.cookies.update(other)
    assert (await backend.http.get(AVATARS)).status_code == 401


async def test_a_session_ends_when_its_time_is_over(backend: Backend, database_url: URL) -> None:
    key = await make_key(database_url)
    await sign_in(backend, key)
    async with backend.app.state.services.database.session() as session:
        await session.execute(text("UPDATE page_session SET expires_at = now()"))
    assert (await backend.http.get(AVATARS)).status_code == 401
    await sign_in(backend, key)
    async with backend.app.state.services.database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM page_session")) == 1


async def test_a_session_sees_what_its_key_sees(backend: Backend, database_url: URL) -> None:
    content = await backend.generate()
    await sign_in(backend, await make_key(database_url, owner="other"))
    assert (await backend.http.get(f"/api/v1/content/{content['id']}")).status_code == 404


async def test_by_https_the_cookie_is_secure(
    start_backend: StartBackend, database_url: URL
) -> None:
    key = await make_key(database_url)
    async with start_backend(public_base_url="https://studio.example") as backend:
        assert "Secure" in (await sign_in(backend, key)).headers["set-cookie"]


@pytest.mark.parametrize("by", ["key", "cookie", "nobody"])
async def test_a_stream_of_events_is_cut_within_seconds_of_losing_its_right(
    backend: Backend, database_url: URL, inference: InferenceDouble, by: str
) -> None:
    inference.gate.clear()
    headers: dict[str, str] = {}
    if by != "nobody":
        key = await make_key(database_url)
        if by == "key":
            headers = {"Authorization": f"Bearer {key}"}
        else:
            await sign_in(backend, key)
    started = await backend.http.post(
        "/api/v1/content/generate",
        json={"prompt": "x"},
        headers={**headers, **OURS, "Prefer": "respond-async"},
    )
    content = started.json()["id"]
    events = f"/api/v1/content/{content}/events"
    stream = asyncio.ensure_future(backend.http.get(events, headers=headers))
    waiting = asyncio.ensure_future(
        backend.http.post(
            "/api/v1/content/generate",
            json={"prompt": "y"},
            headers={**headers, **OURS, "Prefer": "wait=60"},
        )
    )
    others = [
        asyncio.ensure_future(backend.http.post(path, json={"prompt": "z"} | more, headers=headers))
        for path, more in (
            ("/v1/images/generations", {}),
            ("/v1/images/generations", {"stream": True}),
            ("/sdapi/v1/txt2img", {}),
        )
        if by == "key"
    ]
    await asyncio.sleep(0.3)
    if by == "key":
        database = Database(database_url)
        async with database.session() as session:
            keys = ApiKeyRepository(session)
            await keys.revoke((await keys.list())[0].id)
        await database.close()
    elif by == "cookie":
        assert (await backend.http.delete(SESSION, headers=OURS)).status_code == 204
    else:
        await make_key(database_url)
    try:
        told = await asyncio.wait_for(stream, 30)
        assert told.status_code == 200
        assert "event: succeeded" not in told.text
        answer = await asyncio.wait_for(waiting, 30)
        assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHORIZED")
        for other in others:
            answer = await asyncio.wait_for(other, 30)
            assert answer.status_code == 401 or answer.text in ("", ": still drawing\n\n")
            assert "b64_json" not in answer.text
    finally:
        inference.gate.set()


async def test_who_signs_in_with_wrong_keys_again_and_again_has_to_wait(
    backend: Backend, database_url: URL
) -> None:
    key = await make_key(database_url)
    for _ in range(10):
        wrong = await backend.http.post(SESSION, json={"api_key": "sdxl_wrong"})
        assert wrong.status_code == 401
    for tried in ("sdxl_wrong", key):
        late = await backend.http.post(SESSION, json={"api_key": tried})
        assert (late.status_code, late.json()["error_code"]) == (429, "RATE_LIMITED")
        assert 0 < int(late.headers["retry-after"]) <= 60
    by_key = {"Authorization": f"Bearer {key}"}
    assert (await backend.http.get(AVATARS, headers=by_key)).status_code == 200
