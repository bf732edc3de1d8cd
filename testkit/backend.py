"""A running app in the test's own process, and the calls that most tests make."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from sqlalchemy import URL, create_engine

from app.core.db import Database
from app.core.security import key_digest, new_api_key
from app.repositories.access.api_keys import ApiKeyRepository
from testkit.processes import BACKEND

BASE_URL = "http://127.0.0.1:8000"
CONTENT = "/api/v1/content"


@dataclass
class Backend:
    """A running app and a client of it."""

    app: FastAPI
    http: httpx2.AsyncClient

    async def generate(self, expected: int = 200, **body: Any) -> dict[str, Any]:
        """Ask for a picture and wait for it."""
        headers = body.pop("headers", {})
        body.setdefault("prompt", "a red apple")
        answer = await self.http.post("/api/v1/content/generate", json=body, headers=headers)
        assert answer.status_code == expected, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def upload(self, data: bytes, name: str = "Ink", expected: int = 201) -> dict[str, Any]:
        """Put a LoRA into the library."""
        answer = await self.http.post(
            "/api/v1/loras/models/upload",
            files={"file": ("lora.safetensors", data, "application/octet-stream")},
            data={"name": name},
        )
        assert answer.status_code == expected, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def put_image(self, data: bytes, **more: Any) -> dict[str, Any]:
        """Put a picture where it can be drawn from."""
        answer = await self.http.post("/api/v1/images", files={"file": ("a.png", data)}, **more)
        assert answer.status_code in (200, 201), answer.text
        result: dict[str, Any] = answer.json()
        return result


StartBackend = Callable[..., AbstractAsyncContextManager[Backend]]


async def add_key(url: URL, owner: str) -> dict[str, str]:
    database = Database(url)
    key = new_api_key()
    async with database.session() as session:
        await ApiKeyRepository(session).add(key_digest(key), owner=owner, name="test")
    await database.close()
    return {"Authorization": f"Bearer {key}"}


async def ended(backend: Backend, content_id: str) -> dict[str, Any]:
    """The content once it has ended."""
    for _ in range(300):
        content: dict[str, Any] = (await backend.http.get(f"{CONTENT}/{content_id}")).json()
        if content["status"] not in ("queued", "running"):
            return content
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {content['status']}")


@contextlib.asynccontextmanager
async def listening(backend: Backend, certificate: Path | None = None) -> AsyncIterator[str]:
    """The running app on a port of loopback; its URL. `certificate`, with its key: by https."""
    config = uvicorn.Config(
        backend.app,
        host="127.0.0.1",
        port=0,
        lifespan="off",
        log_level="warning",
        ssl_certfile=certificate,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def migrate_down(url: URL, revision: str) -> None:
    """Take the schema back to what it was at `revision`."""
    config = Config()
    config.set_main_option("script_location", str(BACKEND / "migrations").replace("%", "%%"))
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, revision)
    finally:
        engine.dispose()


@dataclass(frozen=True)
class Served:
    """A backend on a port of loopback; `key` is its user's, `other_key` another user's."""

    backend: Backend
    url: str
    key: str
    other_key: str
