"""Keys, owners, signed files, and pages of other sites."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import URL

from app.api.edge import body_limit
from app.core.settings import Settings
from app.repositories.access.api_keys import ApiKeyRepository
from app.services.storage import LocalStorage, check_key
from sdxl_contract.redaction import redact
from testkit.backend import BASE_URL, Backend, add_key
from testkit.loras.plain_bytes import kohya_lora, safetensors_bytes


async def test_with_a_key_made_every_call_needs_one(backend: Backend, database_url: URL) -> None:
    assert (await backend.http.get("/api/v1/content")).status_code == 200
    headers = await add_key(database_url, "local")
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        answer = await backend.http.get("/api/v1/content", headers=wrong)
        assert answer.status_code == 401
        assert answer.json()["error_code"] == "UNAUTHORIZED"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert (await backend.http.get("/api/v1/content", headers=headers)).status_code == 200
    assert (await backend.http.get("/health/ready")).status_code == 200


async def test_without_a_key_no_upload_is_read(
    backend: Backend, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    monkeypatch.setattr(body_limit, "_LINGER_BYTES", 2 * 65536)

    async def blocks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 65536

    await add_key(database_url, "local")
    answer = await backend.http.post(
        "/api/v1/loras/models/upload",
        content=blocks(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 401
    assert read < 10


async def test_a_key_sees_only_its_own(backend: Backend, database_url: URL) -> None:
    lora = await backend.upload(kohya_lora())
    content = await backend.generate()
    other = await add_key(database_url, "other")
    mine = await add_key(database_url, "local")
    for path in (f"/api/v1/content/{content['id']}", f"/api/v1/loras/models/{lora['id']}"):
        assert (await backend.http.get(path, headers=mine)).status_code == 200
        assert (await backend.http.get(path, headers=other)).status_code == 404
        assert (await backend.http.delete(path, headers=other)).status_code == 404
    use = {"prompt": "x", "loras": [{"lora_model_id": lora["id"]}]}
    answer = await backend.http.post("/api/v1/content/generate", json=use, headers=other)
    assert answer.status_code == 404
    lists = (
        "content",
        "content/batch",
        "loras/models",
        "embeddings",
        "identities/avatars",
        "webhooks",
    )
    for path in (f"/api/v1/{name}" for name in lists):
        assert (await backend.http.get(path, headers=other)).json()["items"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:8000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
async def test_without_keys_a_page_of_another_site_is_kept_out(
    backend: Backend, headers: dict[str, str]
) -> None:
    answer = await backend.http.get("/api/v1/content", headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN")


async def test_the_own_page_may_ask(backend: Backend) -> None:
    headers = {"Origin": "http://localhost:5173"}
    assert (await backend.http.get("/api/v1/content", headers=headers)).status_code == 200


async def test_a_signed_file_answers_only_what_was_signed(backend: Backend) -> None:
    content = await backend.generate()
    url = content["image_url"]
    assert url.startswith(f"{BASE_URL}/files/owners/local/images/")
    assert (await backend.http.get(url)).status_code == 200
    for place in range(url.index("/files/") + 7, len(url)):
        changed = url[:place] + ("0" if url[place] != "0" else "1") + url[place + 1 :]
        status = (await backend.http.get(changed)).status_code
        assert status == 403 or (status == 404 and url[place] in "/?&="), (changed, status)
    for method in ("PUT", "POST", "DELETE"):
        assert (await backend.http.request(method, url)).status_code == 403


async def test_a_signed_url_expires(backend: Backend, settings: Settings) -> None:
    content = await backend.generate()
    key = content["image_url"].split("/files/")[1].split("?")[0]
    early = LocalStorage(settings, clock=lambda: time.time() - 60)
    answer = await backend.http.get(early.sign_get(key, 30))
    assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN")
    assert (await backend.http.get(early.sign_get(key, 90))).status_code == 200


async def test_a_signed_file_has_ranges_and_an_etag(backend: Backend) -> None:
    content = await backend.generate()
    url = content["image_url"]
    whole = await backend.http.get(url)
    part = await backend.http.get(url, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    known = {"If-None-Match": whole.headers["etag"]}
    assert (await backend.http.get(url, headers=known)).status_code == 304
    other = await backend.http.get(url, headers={"If-None-Match": '"x"'})
    assert other.status_code == 200


@pytest.mark.parametrize("key", ["", "../x", "a/../../x", "/etc/passwd", "a//b", ".hidden", "a\\b"])
def test_a_key_cannot_leave_the_store(key: str) -> None:
    with pytest.raises(ValueError):
        check_key(key)


def test_the_signing_key_outlives_a_restart_and_is_private(settings: Settings) -> None:
    url = LocalStorage(settings).sign_get("a/b.png", 60)
    expires, signature = (part.split("=")[1] for part in url.split("?")[1].split("&"))
    assert LocalStorage(settings).verify("GET", "a/b.png", expires, signature)
    assert (settings.data_dir / "signing.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("GET http://127.0.0.1:8000/files/a.png?expires=1&signature=s3cret", "s3cret"),
        ("GET /files/a.png?expires=1&signature=s3cret HTTP/1.1", "s3cret"),
        ("headers {'Authorization': 'Bearer s3cret'}", "s3cret"),
        ("postgresql://user:s3cret@host/db", "s3cret"),
        ("https://b.r2.example/x?X-Amz-Signature=s3cret&X-Amz-Date=1", "s3cret"),
    ],
)
def test_the_log_holds_no_secret(line: str, secret: str) -> None:
    assert secret not in redact(line)


async def test_an_unexpected_error_says_nothing_of_itself(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("s3cret in /srv/x")

    monkeypatch.setattr(backend.app.state.services.loras, "list", fail)
    answer = await backend.http.get("/api/v1/loras/models")
    assert answer.status_code == 500
    assert answer.json()["error_code"] == "INTERNAL_ERROR"
    assert "s3cret" not in answer.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/x", 404), ("PUT", "/docs", 405)])
async def test_the_frameworks_own_errors_have_the_same_shape(
    backend: Backend, method: str, path: str, status: int
) -> None:
    answer = await backend.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error_code"]


async def test_no_route_shows_or_changes_what_is_anothers(
    backend: Backend, database_url: URL
) -> None:
    """Walks the OpenAPI document, so that a new route is not forgotten."""
    lora = await backend.upload(kohya_lora())
    avatar = await backend.http.post(
        "/api/v1/identities/avatars", json={"name": "Ann", "base_prompt": "Ann"}
    )
    batch = await backend.http.post("/api/v1/content/batch", json={"prompts": ["a"]})
    hook = await backend.http.post("/api/v1/webhooks", json={"url": "https://example.com/"})
    place = f"/api/v1/webhooks/{hook.json()['id']}"
    board = await backend.http.post("/api/v1/boards", json={"name": "mine"})
    image_id = (await backend.generate())["images"][0]["id"]
    share = await backend.http.post("/api/v1/shares", json={"image_id": image_id})
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    source = await backend.http.post("/api/v1/images", files={"file": picture.getvalue()})
    embedding = await backend.http.post(
        "/api/v1/embeddings",
        files={"file": safetensors_bytes({"clip_l": (1, 768), "clip_g": (1, 1280)})},
        data={"name": "mine"},
    )
    ids = {
        "embedding_id": embedding.json()["id"],
        "webhook_id": hook.json()["id"],
        "delivery_id": (await backend.http.post(f"{place}/test")).json()["id"],
        "content_id": batch.json()["content_ids"][0],
        "batch_id": batch.json()["batch_id"],
        "lora_id": lora["id"],
        "avatar_id": avatar.json()["id"],
        "board_id": board.json()["id"],
        "image_id": image_id,
        "token": share.json()["token"],
        "name": "mine",
    }
    # Names are each owner's own: a PUT of another makes another's, and leaves this one as it is.
    words: dict[str, dict[str, Any]] = {
        "styles": {"prompt": "mine, {prompt}"},
        "wildcards": {"lines": ["mine"]},
    }
    for kind, said in words.items():
        kept = await backend.http.put(f"/api/v1/words/{kind}/mine", json=said)
        assert kept.status_code == 200, kept.text
    named = {f"/api/v1/words/{kind}/{{name}}": kind for kind in words}

    def place_of(path: str) -> str:
        own = {"image_id": source.json()["id"]} if path.startswith("/api/v1/images/") else {}
        return path.format(**{**ids, **own})

    # What each needs beside the id, so that only the id can be what is wrong.
    bodies: dict[str, Any] = {
        "/api/v1/boards/{board_id}": {"name": "theirs"},
        "/api/v1/boards/{board_id}/images": {},
    }
    mine, other = await add_key(database_url, "local"), await add_key(database_url, "other")
    key = await backend.http.post("/api/v1/keys", json={"name": "mine"}, headers=mine)
    ids["key_id"] = key.json()["id"]
    paths = (await backend.http.get("/openapi.json")).json()["paths"]
    walked = 0
    for path, methods in paths.items():
        if not path.startswith("/api/v1"):
            continue
        for method in methods:
            place = place_of(path)
            body: dict[str, Any] = {"json": {}} if method in ("patch", "put") else {}
            if path in bodies and method != "delete":
                body = {"json": bodies[path]}
            answer = await backend.http.request(method, place, **body)
            # Without a key: the page's login, which shows nothing; whoever comes across a picture
            # may ask about it. The operator's routes are not there without a token of theirs.
            opens = {"/api/v1/session": answer.status_code, "/api/v1/verify": 422}
            # Whoever has a link of a picture's owner sees that picture.
            opens["/api/v1/shared/{token}"] = 200
            if path.startswith("/api/v1/admin"):
                opens[path] = 404
            assert answer.status_code == opens.get(path, 401), (method, path)
            if "{" in path and path not in opens and (path not in named or method != "put"):
                answer = await backend.http.request(method, place, headers=other, **body)
                assert answer.status_code == 404, (method, path)
                assert answer.json()["error_code"] == "NOT_FOUND"
                walked += 1
    assert walked >= 11
    for path, kind in named.items():
        theirs = {key: "theirs" if key == "prompt" else ["theirs"] for key in words[kind]}
        answer = await backend.http.put(place_of(path), headers=other, json=theirs)
        assert answer.status_code == 200
        [shown] = (await backend.http.get(f"/api/v1/words/{kind}", headers=mine)).json()["items"]
        assert words[kind].items() <= shown.items()
    for path in paths:
        if "{" in path:
            answer = await backend.http.get(place_of(path), headers=mine)
            assert answer.status_code in (200, 405, 409), path


async def test_revoking_the_last_key_does_not_open_the_server(
    backend: Backend, database_url: URL
) -> None:
    headers = await add_key(database_url, "local")
    async with backend.app.state.services.database.session() as session:
        keys = ApiKeyRepository(session)
        [key] = await keys.list()
        assert await keys.revoke(key.id)
        assert not await keys.revoke(key.id)
    for tried in (headers, {}):
        answer = await backend.http.get("/api/v1/content", headers=tried)
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/identities/avatars", "GET, POST"),
        (f"/api/v1/content/{uuid.UUID(int=7)}", "DELETE, GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    backend: Backend, path: str, allowed: str
) -> None:
    answer = await backend.http.put(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_the_schema_names_the_shape_of_every_error(backend: Backend) -> None:
    paths = (await backend.http.get("/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            if path.startswith("/api/v1"):
                shapes = operation["responses"]["4XX"]["content"]
                assert list(shapes) == ["application/problem+json"], (method, path)
