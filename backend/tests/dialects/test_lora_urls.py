"""LoRAs by URL: fetched under the guard, kept in the library, known again."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from app.core.errors import BackendError, RateLimited
from app.services.calls import lora_urls
from app.services.calls.fetching import name_of
from app.services.calls.lora_urls import LoraUrls
from app.services.calls.picture_urls import PictureUrls
from app.services.outgoing import Outgoing
from sdxl_contract.errors import (
    ContractError,
    ImageDownloadFailed,
    InvalidRequest,
    LoraDownloadFailed,
    LoraLoadFailed,
)
from testkit.backend import Backend
from testkit.doubles.http_server import Call, HttpServer, Reply
from testkit.loras.plain_bytes import kohya_lora

INK = kohya_lora()


class FileServer(HttpServer):
    """Serves LoRAs, some of them badly."""

    def __init__(self) -> None:
        super().__init__()
        self.ink = INK
        self.open = asyncio.Event()

    async def answer(self, call: Call, gone: Callable[[], Awaitable[None]]) -> Reply:
        if call.path == "/ink.safetensors":
            tag = f'"{hash(self.ink)}"'
            if call.headers.get("if-none-match") == tag:
                return Reply(304)
            return Reply(200, self.ink, {"ETag": tag})
        if call.path.startswith("/to/"):
            left = int(call.path.removeprefix("/to/"))
            return Reply(302, headers={"Location": f"/to/{left - 1}" if left else "/named"})
        if call.path == "/named":
            return Reply(
                200, INK, {"Content-Disposition": 'attachment; filename="Fine Ink.safetensors"'}
            )
        if call.path == "/inner":
            return Reply(302, headers={"Location": "http://10.0.0.1/x"})
        if call.path == "/cut":
            return Reply(200, INK, cut=100)
        if call.path == "/slow":
            await self.open.wait()
            return Reply(200, INK)
        if call.path == "/text":
            return Reply(200, b"<html>" + b" " * 1000)
        return Reply(404 if call.path == "/gone" else 503)


@pytest.fixture
async def files() -> AsyncIterator[FileServer]:
    async with FileServer() as server:
        yield server


@pytest.fixture
async def urls(backend: Backend) -> AsyncIterator[LoraUrls]:
    outgoing = Outgoing(allow_loopback=True)
    services = backend.app.state.services
    made = LoraUrls(
        services.database,
        services.loras,
        outgoing,
        max_bytes=len(INK) + 10,
        at_once=2,
        seconds=2.0,
    )
    backend.app.state.services = dataclasses.replace(services, lora_urls=made)
    yield made
    await outgoing.aclose()


async def test_a_url_is_fetched_once_and_asked_again_whether_it_changed(
    urls: LoraUrls, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{files.url}/ink.safetensors?signature=secret"
    first = await urls.lora_at("local", url, "path")
    assert (first.name, first.size_bytes) == ("ink", len(INK))
    assert (await urls.lora_at("local", url, "path")).id == first.id
    assert len(files.calls) == 1
    monkeypatch.setattr(lora_urls, "_FRESH", timedelta())
    assert (await urls.lora_at("local", url, "path")).id == first.id
    assert files.calls[-1].headers["if-none-match"]
    files.ink = kohya_lora(2)
    second = await urls.lora_at("local", url, "path")
    assert (second.id != first.id, second.name) == (True, "ink (2)")
    # Another owner has a library of its own.
    assert (await urls.lora_at("other", url, "path")).id not in (first.id, second.id)


async def test_redirections_are_followed_under_the_same_guard(
    urls: LoraUrls, files: FileServer
) -> None:
    assert (await urls.lora_at("local", f"{files.url}/to/4", "path")).name == "Fine Ink"
    for path, reason in (("to/5", "redirect"), ("inner", "redirect")):
        with pytest.raises(LoraDownloadFailed) as caught:
            await urls.lora_at("local", f"{files.url}/{path}", "path")
        assert (caught.value.details or {})["reason"] == reason


async def test_what_is_no_lora_or_does_not_come_is_refused_and_not_kept(
    urls: LoraUrls, files: FileServer, backend: Backend
) -> None:
    files.ink = INK + bytes(11)
    for path, reason, status in (
        ("gone", "http_status", 400),
        ("broken", "http_status", 502),
        ("cut", "unreachable", 502),
        ("slow", "timeout", 502),
        ("ink.safetensors", "too_large", 400),
    ):
        with pytest.raises(LoraDownloadFailed, match=r"^path: ") as caught:
            await urls.lora_at("local", f"{files.url}/{path}", "path")
        assert ((caught.value.details or {})["reason"], caught.value.status) == (reason, status)
        assert files.url not in str(caught.value)
    with pytest.raises(LoraLoadFailed):
        await urls.lora_at("local", f"{files.url}/text", "path")
    for url in ("https://127.0.0.2:1/x", "https://10.0.0.1/x", "ftp://a/x", "https://u:p@a/x"):
        with pytest.raises((ContractError, BackendError)):
            await urls.lora_at("local", url, "path")
    assert (await backend.http.get("/api/v1/loras/models")).json()["items"] == []


async def test_an_owner_fetches_so_many_at_once(urls: LoraUrls, files: FileServer) -> None:
    async def fetch(number: int) -> str:
        return (await urls.lora_at("local", f"{files.url}/slow?{number}", "path")).name

    two = [asyncio.create_task(fetch(number)) for number in range(2)]
    while len(files.calls) < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(RateLimited):
        await fetch(2)
    files.open.set()
    assert await asyncio.gather(*two) == ["slow", "slow"]
    assert await fetch(2) == "slow"


async def test_a_url_works_in_a_dialects_call_and_as_data(
    urls: LoraUrls, files: FileServer, backend: Backend
) -> None:
    data = f"data:application/octet-stream;base64,{base64.b64encode(INK).decode()}"
    ids = set()
    for lora in (f"{files.url}/ink.safetensors", data):
        body = {"input": {"prompt": "x", "lora": lora, "lora_scale": 0.5}}
        answer = await backend.http.post(
            "/replicate/v1/models/a/sdxl/predictions", json=body, headers={"Prefer": "wait"}
        )
        assert answer.json()["status"] == "succeeded", answer.text
        content = (await backend.http.get(f"/api/v1/content/{answer.json()['id']}")).json()
        ids |= {(use["lora_model_id"], use["scale"]) for use in content["loras"]}
    assert len(ids) == 1
    assert answer.json()["input"]["lora"] == data[:40] + "…"


def test_what_a_file_is_called() -> None:
    for url, header, name in (
        ("https://h/a/b/Fine%20Ink.safetensors?x=1", "", "Fine Ink"),
        ("https://h/", "", "h"),
        ("https://h/12", 'attachment; filename="Ink v2.safetensors"', "Ink v2"),
        ("https://h/%00%2e%2e<>", "", ".."),
    ):
        assert name_of(url, {"content-disposition": header}) == name


async def test_a_picture_is_fetched_under_the_same_bounds(files: FileServer) -> None:
    outgoing = Outgoing(allow_loopback=True)
    pictures = PictureUrls(outgoing, at_once=1, seconds=2.0)
    assert await pictures.bytes_at("local", f"{files.url}/to/2", "image") == INK
    both = await asyncio.gather(
        *(pictures.bytes_at("local", f"{files.url}/named", "image") for _ in range(2)),
        return_exceptions=True,
    )
    assert {type(one) for one in both} == {bytes, RateLimited}
    for path, reason in (("gone", "http_status"), ("cut", "unreachable"), ("slow", "timeout")):
        with pytest.raises(ImageDownloadFailed) as caught:
            await pictures.bytes_at("local", f"{files.url}/{path}", "image")
        assert caught.value.details == {"field": "image", "reason": reason, "host": "127.0.0.1"}
    with pytest.raises(InvalidRequest, match="public"):
        await pictures.bytes_at("local", "https://10.0.0.1/x.png", "image")
    await outgoing.aclose()
