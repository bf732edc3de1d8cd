"""What every answer has, and what happens to a call before its route sees it."""

from __future__ import annotations

import asyncio
import codecs
import errno
import gzip
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.edge.body_deadline import BodyDeadline
from app.api.edge.compression import takes_gzip
from app.core.dialect import Dialect, Dialects
from app.core.settings import load_settings
from app.schemas.content import GenerateIn
from app.services.storage import LocalStorage, S3Storage
from testkit.backend import Backend, StartBackend
from testkit.loras.plain_bytes import kohya_lora

CONTENT = "/api/v1/content"
UPLOAD = "/api/v1/loras/models/upload"


HOSTS = (
    "[", "[::1", "a b", "127.0.0.1:80:80", "127.0.0.1:x", "http://127.0.0.1", "127.0.0.1/x",
    "u@127.0.0.1", "\xff",
)  # fmt: skip
ORIGINS = ("http://[", "http://[::1", "http://127.0.0.1:x", "null", "[")


async def test_a_malformed_host_or_origin_is_the_caller_s_error(backend: Backend) -> None:
    sent = [("Host", host) for host in HOSTS] + [("Origin", origin) for origin in ORIGINS]
    for name, value in sent:
        for path in (CONTENT, "/api/v1/session"):
            header = {name: value.encode("latin-1")}
            answer = await backend.http.get(path, headers=header)  # type: ignore[arg-type]
            assert answer.status_code == (400 if name == "Host" else 403), (name, value)
            assert answer.headers["content-type"] == "application/problem+json"


async def test_every_answer_says_that_it_is_what_it_says_and_is_not_kept(
    backend: Backend,
) -> None:
    content = await backend.generate()
    for path in (
        CONTENT,
        f"{CONTENT}/{content['id']}",
        "/api/v1/none",
        "/health/live",
        "/openapi.json",
        "/docs",
        "/metrics",
        "/",
    ):
        answer = await backend.http.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["cache-control"] in ("no-store", "no-cache"), path
    wrong = await backend.http.post(f"{CONTENT}/generate", content=b"{")
    assert wrong.headers["cache-control"] == "no-store"


async def test_a_long_json_answer_is_compressed_for_whoever_takes_it(backend: Backend) -> None:
    await asyncio.gather(*(backend.generate(prompt="a red apple " * 20) for _ in range(3)))
    lengths = set()
    for _ in range(8):
        async with backend.http.stream("GET", CONTENT) as packed:
            raw = b"".join([part async for part in packed.aiter_raw()])
        assert packed.headers["content-encoding"] == "gzip"
        assert int(packed.headers["content-length"]) == len(raw)
        lengths.add(len(raw))
    assert len(lengths) > 1, "its length tells what compressed well"
    plain = await backend.http.get(CONTENT, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 2
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    short = await backend.http.get("/health/live")
    assert "content-encoding" not in short.headers


async def test_live_events_and_pictures_are_not_compressed(backend: Backend) -> None:
    content = await backend.generate()
    accepts = {"Accept-Encoding": "gzip"}
    events = await backend.http.get(f"{CONTENT}/{content['id']}/events", headers=accepts)
    picture = await backend.http.get(content["image_url"], headers=accepts)
    for answer in (events, picture):
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers


async def test_the_reference_runs_nothing_and_cannot_be_framed(backend: Backend) -> None:
    page = await backend.http.get("/docs")
    assert page.status_code == 200
    assert "/api/v1/content/generate" in page.text
    assert "<script" not in page.text
    assert "://" not in page.text.split("<body>")[0].split("<style>")[0]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-frame-options"] == "DENY"
    assert (await backend.http.get("/redoc")).status_code == 404


@pytest.mark.parametrize(
    ("header", "takes"),
    [
        ("gzip", True), ("GZIP;q=0.5, br", True), ("*", True), ("br, *;q=0.1", True), ("", False),
        ("gzip;q=0", False), ("*, gzip;q=0", False), ("gzip;q=x", False), ("br", False),
        ("xgzip", False),
    ],
)  # fmt: skip
def test_gzip_is_sent_where_it_is_taken(header: str, takes: bool) -> None:
    assert takes_gzip(header) is takes


async def test_a_picture_s_url_stays_the_same_and_may_be_kept(backend: Backend) -> None:
    content = await backend.generate()
    again = (await backend.http.get(f"{CONTENT}/{content['id']}")).json()
    assert again["image_url"] == content["image_url"]
    got = await backend.http.get(content["image_url"])
    assert "private" in got.headers["cache-control"]
    assert "immutable" in got.headers["cache-control"]
    known = {"If-None-Match": got.headers["etag"]}
    assert (await backend.http.get(content["image_url"], headers=known)).status_code == 304
    head = await backend.http.head(content["image_url"])
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))
    changed = content["image_url"].replace("signature=", "signature=0")
    assert (await backend.http.head(changed)).status_code == 403


@pytest.mark.parametrize("seconds", [1, 60, 900, 7 * 86400])
def test_a_picture_s_url_is_valid_as_long_as_promised(tmp_path: Path, seconds: int) -> None:
    now = 1_000_000.0
    storage = LocalStorage(load_settings(data_dir=tmp_path), clock=lambda: now)
    urls = []
    for now in (1_000_000.0, 1_000_001.0, 1_000_199.9, 1_000_600.0):
        url = storage.image_url("a/b.png", seconds)
        expires = int(url.split("expires=")[1].split("&")[0])
        assert now + seconds - 1 <= expires <= now + seconds + 600
        urls.append(url)
    if seconds >= 600:
        assert urls[0] == urls[1] == urls[2]
        assert urls[3] != urls[0]
    # A LoRA's is signed to the second: it is used at once.
    assert f"expires={int(now) + seconds}" in storage.sign_get("a/b.png", seconds)


def test_a_bucket_s_picture_url_stays_the_same_for_some_minutes() -> None:
    now = 1_000_000.0
    settings = load_settings(
        r2_endpoint_url="https://x.example", r2_bucket_name="b", r2_access_key_id="i",
        r2_secret_access_key="s",
    )  # fmt: skip
    storage = S3Storage(settings, clock=lambda: now)
    first = storage.image_url("a/b.png", 900)
    now += 599
    assert storage.image_url("a/b.png", 900) == first
    assert storage.image_url("a/c.png", 900) != first
    assert "X-Amz-Expires=1500" in first
    assert "X-Amz-Expires=604800" in storage.image_url("a/b.png", 604_800)
    now += 2
    storage.image_url("a/b.png", 900)
    assert storage._signed["a/b.png", 900][0] == now


RANGES = (
    "bytes=", "bytes=x", "bytes=5-2", "bytes=-", "bytes=99999999-", "bytes=-0", "bytes=1-2,z",
    "bytes=" + "9" * 30 + "-", "bytes=" + ",".join(["0-0"] * 50),
)  # fmt: skip


async def test_a_part_that_cannot_be_had_is_a_problem_like_any_other(backend: Backend) -> None:
    url = (await backend.generate())["image_url"]
    for asked in RANGES:
        answer = await backend.http.get(url, headers={"Range": asked})
        assert answer.status_code == 416, asked
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["field"] == "Range"
    for asked, status in (("bytes=0-3", 206), ("bytes=-3", 206), ("lines=1-2", 200)):
        got = await backend.http.get(url, headers={"Range": asked})
        assert got.status_code == status


async def answered(app: BodyDeadline, parts: list[tuple[float, bytes]]) -> int:
    """The status of an answer to a body whose parts come after so many seconds each."""
    sent: list[Message] = []
    coming = iter(parts)

    async def receive() -> Message:
        try:
            seconds, data = next(coming)
        except StopIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": data, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "headers": [], "path": "/"}, receive, send)
    return int(sent[0]["status"])


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    del scope
    while (message := await receive())["type"] == "http.request" and message["more_body"]:
        pass
    if message["type"] == "http.disconnect":
        raise ConnectionError
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_a_body_that_falls_silent_or_trickles_is_let_go() -> None:
    app = BodyDeadline(
        reads_all, dialects=Dialects(Dialect("")), silence_s=0.2, grace_s=0.5, slowest=1000
    )
    assert await answered(app, [(0.1, b"x")]) == 200
    assert await answered(app, [(0.1, b"x"), (5, b"x")]) == 408
    assert await answered(app, [(0.1, b"x")] * 30) == 408
    assert await answered(app, [(0.1, b"x" * 200)] * 10) == 200, "slow, and yet it comes"


async def test_a_key_sends_so_many_files_at_a_time_and_another_is_told_to_wait(
    start_backend: StartBackend,
) -> None:
    async with start_backend(max_uploads_at_once=1) as backend:
        begun, gate = asyncio.Event(), asyncio.Event()

        async def slow() -> Any:
            yield b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
            begun.set()  # it has its place: its body is being read
            await gate.wait()
            yield b"a\r\n--x--\r\n"

        form = {"Content-Type": "multipart/form-data; boundary=x"}
        first = asyncio.ensure_future(backend.http.post(UPLOAD, content=slow(), headers=form))
        await begun.wait()
        second = await backend.http.post(UPLOAD, content=b"--x--\r\n", headers=form)
        assert (second.status_code, second.json()["error_code"]) == (429, "RATE_LIMITED")
        assert "retry-after" in second.headers
        gate.set()
        assert (await first).status_code == 422  # it holds no file
        await backend.upload(kohya_lora())


async def test_a_full_temporary_folder_is_the_server_s_error_and_is_named(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    files = {"file": ("a.safetensors", kohya_lora(), "application/octet-stream")}
    answer = await backend.http.post(UPLOAD, files=files, data={"name": "a"})
    assert (answer.status_code, answer.json()["error_code"]) == (507, "STORAGE_FAILED")
    assert "temporary folder" in answer.json()["detail"]
    assert isinstance(backend.http, httpx2.AsyncClient)


def part(disposition: str, data: bytes) -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + data + b"\r\n"


async def test_an_upload_takes_one_file_however_it_is_named_and_passes_nothing_over(
    backend: Backend,
) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    name, data = part('name="name"', b"Ink"), kohya_lora()

    async def send(*parts: bytes) -> tuple[int, Any]:
        body = b"".join(parts) + b"--x--\r\n"
        answer = await backend.http.post(UPLOAD, content=body, headers=form)
        return answer.status_code, answer.json()

    extended = part("name=\"file\"; filename*=UTF-8''na%C3%AFve.safetensors", data)
    assert (await send(name, extended))[0] == 201
    file = part('name="file"; filename="a.safetensors"', data)
    assert (await send(name, file))[0] == 200, "the same bytes"
    both = part('name="file"; filename="a"; filename*=UTF-8\'\'b', data)
    assert (await send(name, both))[0] == 200
    for parts, field, words in (
        ((name, file, file), "file", "one file at a time"),
        ((name, file, extended), "file", "one file at a time"),
        ((name, file, part('name="file2"; filename="b"', data)), "file2", "is not a field"),
        ((name, file, part('name="tag"', b"a")), "tag", "is not a field"),
        ((name, name, file), "name", "send it once"),
        ((name, part('name="file"', b"x")), "file", "must be a file"),
        ((name,), "file", "is required"),
    ):
        status, problem = await send(*parts)
        assert (status, problem["error_code"], problem["field"]) == (422, "INVALID_REQUEST", field)
        assert words in problem["detail"]
    tags = (part('name="tags"', b"a"), part('name="tags"', b"b"))
    status, lora = await send(name, part('name="file"; filename="b"', kohya_lora(8)), *tags)
    assert (status, lora["tags"]) == (201, ["a", "b"])
    broken = await backend.http.post(UPLOAD, content=b"--y\r\n", headers=form)
    assert (broken.status_code, broken.json()["field"]) == (422, "request")


async def test_json_in_another_encoding_is_refused_as_at_the_worker(backend: Backend) -> None:
    plain = '{"prompt": "a red apple", "name": "ñ"}'
    others = [
        codecs.BOM_UTF8 + plain.encode(),
        *(plain.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32-le")),
    ]
    for path in (f"{CONTENT}/generate", "/api/v1/identities/avatars", "/api/v1/session"):
        for body in others:
            answer = await backend.http.post(
                path, content=body, headers={"Content-Type": "application/json; charset=utf-16"}
            )
            assert (answer.status_code, answer.json()["field"]) == (422, "request")

    async def slowly() -> Any:
        for byte in b'{"prompt": "x"}':
            yield bytes([byte])

    taken = await backend.http.post(
        f"{CONTENT}/generate",
        content=slowly(),
        headers={"Content-Type": "application/json", "Prefer": "respond-async"},
    )
    assert taken.status_code == 202


async def test_null_is_as_good_as_leaving_an_optional_field_out(backend: Backend) -> None:
    fields = {name for name, field in GenerateIn.model_fields.items() if not field.is_required()}
    assert {"loras", "controls", "seed", "negative_prompt"} <= fields
    nothing: dict[str, Any] = dict.fromkeys(fields - {"prompt"})
    content = await backend.generate(prompt="a", **nothing)
    plain = await backend.generate(prompt="a")
    assert content["parameters"].keys() == plain["parameters"].keys()
    assert content["parameters"]["steps"] == plain["parameters"]["steps"]
    batch = await backend.http.post(
        f"{CONTENT}/batch",
        json={"prompts": ["a"], "count": None, "steps": None, "seed": None, "loras": None},
    )
    assert batch.status_code == 202
    avatars = "/api/v1/identities/avatars"
    lora = await backend.upload(kohya_lora())
    made = await backend.http.post(
        avatars,
        json={"name": "A", "base_prompt": "b", "negative_prompt": None, "lora_scale": None,
              "lora_model_id": lora["id"]},
    )  # fmt: skip
    assert (made.status_code, made.json()["lora_scale"]) == (201, 0.9)
    place = f"{avatars}/{made.json()['id']}"
    same = await backend.http.patch(place, json={"name": None, "lora_scale": None})
    assert (same.json()["name"], same.json()["lora_model_id"]) == ("A", lora["id"])
    without = await backend.http.patch(place, json={"lora_model_id": None})
    assert without.json()["lora_model_id"] is None
    for body, field in (({"name": None, "base_prompt": "b"}, "name"),
                        ({"name": "A", "base_prompt": "b", "other": None}, "other")):  # fmt: skip
        wrong = await backend.http.post(avatars, json=body)
        assert (wrong.status_code, wrong.json()["field"]) == (422, field)
