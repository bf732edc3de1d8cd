"""What stands before every call, without a model and without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from sdxl_worker.api import create_app
from sdxl_worker.engine import Engine
from testkit.worker import settings

TOKEN = "right-and-long-enough"


def calling(host: str = "127.0.0.1:8001", **changes: Any) -> httpx2.AsyncClient:
    """A client of a worker whose model is never loaded."""
    config = settings(**changes)
    transport = httpx2.ASGITransport(app=create_app(Engine(config), config))
    return httpx2.AsyncClient(transport=transport, base_url=f"http://{host}")


@pytest.fixture
async def open_worker() -> AsyncIterator[httpx2.AsyncClient]:
    async with calling() as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"Host": "evil.example"}, 403, "Host"),
        ({"Host": "127.0.0.1.evil.example"}, 403, "Host"),
        ({"Host": "localhost.evil.example:80"}, 403, "Host"),
        ({"Host": "[::1"}, 400, "Host"),
        ({"Host": "127.0.0.1:99999999"}, 400, "Host"),
        ({"Host": "a b"}, 400, "Host"),
        ({"Host": ""}, 400, "Host"),
        ({"Origin": "https://evil.example"}, 403, "Origin"),
        ({"Origin": "null"}, 403, "Origin"),
        ({"Origin": "http://[::1"}, 403, "Origin"),
        ({"Origin": "http://127.0.0.1:8000"}, 403, "Origin"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "Sec-Fetch-Site"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "Sec-Fetch-Site"),
        ({"Content-Type": "text/plain"}, 415, "Content-Type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
        ({"Content-Type": "application/jsonp"}, 415, "Content-Type"),
    ],
)
async def test_without_a_token_no_web_page_gets_through(
    open_worker: httpx2.AsyncClient, headers: dict[str, str], status: int, field: str
) -> None:
    answer = await open_worker.post(
        "/generate-image",
        content=b'{"prompt": "x"}',
        headers={"Content-Type": "application/json"} | headers,
    )

    assert (answer.status_code, answer.json()["details"]["field"]) == (status, field)
    if field != "Content-Type":
        for path in ("/health", "/metrics", "/requests/x", "/openapi.json"):
            assert (await open_worker.get(path, headers=headers)).status_code == status, path


@pytest.mark.parametrize(
    "headers", [{}, {"Host": "localhost:8001"}, {"Host": "[::1]:8001"}, {"Sec-Fetch-Site": "none"}]
)
async def test_a_program_on_this_computer_gets_through(
    open_worker: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await open_worker.post("/generate-image", json={"prompt": "x"}, headers=headers)
    assert answer.json()["error_code"] == "MODEL_LOAD_FAILED"  # past the guard


async def test_with_a_token_it_is_the_token_that_counts() -> None:
    async with calling("worker.example", worker_api_token=TOKEN) as client:
        for path in ("/docs", "/openapi.json", "/metrics", "/requests/x"):
            assert (await client.get(path)).status_code == 401, path
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/openapi.json", headers=right)).status_code == 200
        wrong = {b"Authorization": "Bearer \xe9".encode("latin-1")}
        assert (await client.get("/metrics", headers=wrong)).status_code == 401


async def test_every_answer_says_how_it_may_be_read(open_worker: httpx2.AsyncClient) -> None:
    for path in ("/health", "/metrics", "/nope", "/requests/x"):
        headers = (await open_worker.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
