"""Bodies that cannot be read, headers that say more than one thing, senders that never end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi.dependencies.models import Dependant
from starlette.types import Receive, Scope, Send

from app.api import (
    content,
    costs,
    files,
    health,
    identities,
    loras,
    studio,
)
from app.api.access import keys, session
from app.api.content import wait_seconds
from app.api.edge import body_limit
from app.api.edge.body_limit import BodyLimit
from app.core.dialect import Dialect, Dialects
from testkit.backend import Backend
from testkit.loras.plain_bytes import kohya_lora

CONTENT = "/api/v1/content"
UPLOAD = "/api/v1/loras/models/upload"
JSON = {"Content-Type": "application/json", "Prefer": "respond-async"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=["half", "list", "null", "utf-16", "no-utf-8", "deep", "long-number"],
)
async def test_a_body_that_is_no_json_object_is_said_to_be_none(
    backend: Backend, body: bytes
) -> None:
    answer = await backend.http.post(f"{CONTENT}/generate", content=body, headers=JSON)
    problem = answer.json()
    assert (answer.status_code, problem["error_code"]) == (422, "INVALID_REQUEST")
    assert problem["field"] == "request"
    assert "must be a JSON object" in problem["detail"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_json_that_is_not_called_so_is_told_its_header(
    backend: Backend, media_type: str
) -> None:
    answer = await backend.http.post(
        f"{CONTENT}/generate", content=b'{"prompt": "x"}', headers={"Content-Type": media_type}
    )
    assert (answer.status_code, answer.json()["error_code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("value", [True, "7", [7], {"a": 7}])
@pytest.mark.parametrize("field", ["seed", "steps", "cfg", "width", "num_images"])
async def test_a_number_is_a_number(backend: Backend, field: str, value: Any) -> None:
    answer = await backend.http.post(f"{CONTENT}/generate", json={"prompt": "x", field: value})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_whole_number_may_be_spelled_with_a_point(backend: Backend) -> None:
    content = await backend.generate(seed=7.0, steps=20.0)
    assert content["parameters"]["seed"] == 7


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ('["a"', "must be a JSON list"),
        ("[" * 100_000, "must be a JSON list"),
        ('["\\ud800"]', "valid Unicode"),
        ('["a\\u0000"]', "NUL"),
    ],
    ids=["half", "deep", "surrogate", "NUL"],
)
async def test_tags_that_cannot_be_kept_are_named(backend: Backend, tags: str, says: str) -> None:
    answer = await backend.http.post(
        UPLOAD, files={"file": ("x", kohya_lora())}, data={"name": "Ink", "tags": tags}
    )
    assert (answer.status_code, answer.json().get("field")) == (422, "tags"), answer.text
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"garbage", "Invalid multipart data"),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file\r\n--x--\r\n', "file"),
    ],
)
async def test_a_form_that_cannot_be_read_is_the_callers_mistake(
    backend: Backend, body: bytes, says: str
) -> None:
    answer = await backend.http.post(
        UPLOAD, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert (answer.status_code, answer.json()["error_code"]) == (422, "INVALID_REQUEST")
    assert says in answer.json()["detail"]
    assert "class 'str'" not in answer.text


async def test_messages_speak_of_characters_and_items(backend: Backend) -> None:
    long = {"name": "x" * 201, "base_prompt": "x"}
    answer = await backend.http.post("/api/v1/identities/avatars", json=long)
    assert answer.json()["detail"] == "name: must have at most 200 characters"
    many = await backend.http.post(f"{CONTENT}/batch", json={"prompts": ["x"] * 101})
    assert many.json()["detail"] == "prompts: must have at most 100 items"
    wide = await backend.http.post(f"{CONTENT}/batch", json={"prompts": ["x"] * 100, "count": 6})
    assert wide.json()["detail"].startswith("count: must be at most 5 with 100 prompts")


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ([], (60.0, None)),
        (["respond-async"], (0.0, "respond-async")),
        (["handling=lenient", "respond-async"], (0.0, "respond-async")),
        (["wait=5"], (5.0, "wait=5")),
        (["respond-async", "wait=5"], (5.0, "wait=5")),
        (["wait=100000000"], (600.0, "wait=600")),
        (['Wait = "7"'], (7.0, "wait=7")),
        (["wait=-1"], (60.0, None)),
        (["wait=soon; x"], (60.0, None)),
    ],
)
def test_every_prefer_header_counts(prefer: list[str], expected: tuple[float, str | None]) -> None:
    assert wait_seconds(prefer, 60.0) == expected


async def test_two_prefer_headers_are_one_list(backend: Backend) -> None:
    answer = await backend.http.post(
        f"{CONTENT}/generate",
        json={"prompt": "x"},
        headers=[("Prefer", "handling=lenient"), ("Prefer", "respond-async")],
    )
    assert answer.headers["preference-applied"] == "respond-async"


@pytest.mark.parametrize("key", ["a\tb", "", "x" * 256, "\u00e9"])
async def test_an_idempotency_key_is_printable(backend: Backend, key: str) -> None:
    answer = await backend.http.post(
        f"{CONTENT}/generate", json={"prompt": "x"}, headers=[(b"Idempotency-Key", key.encode())]
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


def dependencies(dependant: Dependant) -> Iterator[Callable[..., Any]]:
    """Everything that the framework calls before a route, and the route."""
    if dependant.call is not None:
        yield dependant.call
    for inner in dependant.dependencies:
        yield from dependencies(inner)


@pytest.mark.parametrize(
    "module", [content, costs, files, health, identities, keys, loras, session, studio]
)
def test_no_call_goes_through_a_thread_before_its_route(module: Any) -> None:
    seen = 0
    for name in ("router", "model_router"):
        for route in getattr(getattr(module, name, None), "routes", []):
            for call in dependencies(route.dependant):
                inner = call if inspect.isroutine(call) else type(call).__call__
                waits = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
                assert waits, (route.path, call)
                seen += 1
    assert seen


# --- senders that go on after the answer --------------------------------------------------------


@contextlib.contextmanager
def served() -> Iterator[tuple[str, int]]:
    """A server that refuses more than 1000 bytes, and answers /now without reading."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/now":
            while (await receive()).get("more_body"):
                pass
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"read"})

    limited = BodyLimit(app, max_bytes=1000, dialects=Dialects(Dialect("")))
    config = uvicorn.Config(limited, host="127.0.0.1", port=0, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.01)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("/read", "Content-Length: 9999999999999", 413), ("/read", "Transfer-Encoding: chunked", 413),
     ("/now", "Transfer-Encoding: chunked", 200)],
)  # fmt: skip
def test_a_sender_that_never_ends_is_answered_and_cut_off(
    monkeypatch: pytest.MonkeyPatch, path: str, length: str, status: int
) -> None:
    monkeypatch.setattr(body_limit, "_LINGER_BYTES", 2**20)
    with served() as address, socket.create_connection(address, timeout=20) as caller:
        caller.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        block = b"\0" * 65536
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 2**28:  # without an end to it, all of this would be taken
                caller.sendall(
                    b"%x\r\n%s\r\n" % (len(block), block) if "chunk" in length else block
                )
                sent += len(block)
        assert sent < 2**28
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := caller.recv(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in head.lower()
        if status == 413:
            assert json.loads(body)["error_code"] == "TOO_LARGE"


def test_a_request_that_was_read_keeps_its_connection() -> None:
    with served() as address, socket.create_connection(address, timeout=20) as caller:
        for _ in range(2):
            caller.sendall(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            answer = b""
            while not answer.endswith(b"read"):
                part = caller.recv(65536)
                assert part, answer
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" not in answer.lower()
