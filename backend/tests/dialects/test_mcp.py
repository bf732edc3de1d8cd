"""`/mcp` with the `mcp` package's own client, in the newest protocol and by the older handshake."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from app.dialects.mcp import tools
from app.services.marking.reading import read
from sdxl_client.cli.mcp import Bridge
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.result import Phase, ProgressEvent
from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

CLIENT = str(Path(__file__).resolve().parents[3] / "client" / "src")


@contextlib.asynccontextmanager
async def connected(served: Served, key: str, mode: str = "auto") -> AsyncIterator[Any]:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{served.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_agent_draws_with_a_lora_and_sees_small_pictures(
    served: Served, inference: InferenceDouble, mode: str
) -> None:
    await served.backend.upload(kohya_lora(), "Ink")
    inference.event_pause = 0.55
    inference.events = [ProgressEvent(phase=Phase.DENOISE, step=8, steps=20, eta_seconds=3.0)]
    told: list[tuple[float, float | None]] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total))

    async with connected(served, served.key, mode) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {"generate_image", "get_image", "list_loras", "get_model", "cancel"}
        found = (await client.call_tool("list_loras", {"query": "ink"})).structured_content
        assert [lora["name"] for lora in found["loras"]] == ["Ink"]
        result = await client.call_tool(
            "generate_image",
            {"prompt": "a red apple <lora:Ink:0.5>", "seed": 7, "num_images": 2},
            progress_callback=progress,
        )
        facts = result.structured_content
        assert [image["seed"] for image in facts["images"]] == [7, 8]
        *pictures, text = result.content
        for picture in pictures:
            opened = Image.open(io.BytesIO(base64.b64decode(picture.data)))
            assert (opened.format, max(opened.size)) == ("JPEG", 512)
            manifest = read(base64.b64decode(picture.data), "")["manifest"]
            assert manifest["facts"]["prompt"] == "a red apple"
        assert facts["id"] in text.text
        assert sum(len(picture.data) for picture in pictures) < 100_000
        again = await client.call_tool("get_image", {"id": facts["id"]})
        assert again.structured_content["status"] == "succeeded"
    assert told == [(8.0, 20.0)]
    assert [ref.scale for ref in inference.requests[0].loras] == [0.5]


async def test_a_long_drawing_gives_its_id_and_can_be_stopped(
    served: Served, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    async with connected(served, served.key) as client:
        made = await served.backend.http.post(
            "/api/v1/content/generate", json={"prompt": "x"}, headers={"Prefer": "respond-async"}
        )
        content = made.json()["id"]
        waiting = await client.call_tool("get_image", {"id": content, "wait": 0.2})
        assert waiting.structured_content["status"] in ("queued", "running")
        assert content in waiting.content[0].text
        async with connected(served, served.other_key) as other:
            for tool in ("get_image", "cancel"):
                refused = await other.call_tool(tool, {"id": content})
                assert refused.is_error
                assert "no content" in refused.content[0].text
        stopped = await client.call_tool("cancel", {"id": content})
        assert not stopped.is_error
    inference.gate.set()
    assert tools.WAIT_SECONDS == 50


@pytest.mark.process
async def test_the_command_line_serves_the_same_tools_over_stdio(
    served: Served, inference: InferenceDouble
) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "sdxl_client.cli.app", "mcp"],
        env={"SDXL_URL": served.url, "SDXL_API_KEY": served.key, "PYTHONPATH": CLIENT},
    )
    inference.event_pause = 0.55
    inference.events = [ProgressEvent(phase=Phase.DENOISE, step=8, steps=20, eta_seconds=3.0)]
    told: list[float] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with Client(command) as client:
        result = await client.call_tool(
            "generate_image", {"prompt": "a red apple"}, progress_callback=progress
        )
        assert result.structured_content["status"] == "succeeded"
        assert result.content[0].type == "image"
        assert told == [8.0]
    written: list[str] = []
    async with httpx2.AsyncClient(timeout=5) as http:
        for url, hint in (("http://127.0.0.1:9/mcp", "reached"), (f"{served.url}/mcp", "key")):
            bridge = Bridge(http, url, written.append)
            bridge.take('{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}')
            await bridge.finish()
            assert hint in json.loads(written[-1])["error"]["message"]
        bridge.take("no JSON")
        assert json.loads(written[-1])["error"]["code"] == -32700


async def test_what_goes_wrong_is_told_to_the_agent(
    served: Served, inference: InferenceDouble
) -> None:
    async with connected(served, served.key) as client:
        for arguments, hint in (
            ({"prompt": " "}, "blank"),
            ({"prompt": "x", "width": 1001}, "nearest"),
            ({"prompt": "x <lora:Nothing:1>"}, "no LoRA"),
            ({"prompt": "x", "num_images": 9}, "less than or equal to 4"),
        ):
            result = await client.call_tool("generate_image", arguments)
            assert (result.is_error, hint in result.content[0].text) == (True, True), arguments
        inference.failures = [GenerationFailed("not finite")]
        failed = await client.call_tool("generate_image", {"prompt": "x"})
        assert (failed.is_error, "not finite" in failed.content[0].text) == (True, True)
        assert (await client.call_tool("get_image", {"id": "none"})).is_error
        model = (await client.call_tool("get_model", {})).structured_content
        assert model["native_size"] == 1024


async def test_a_key_is_asked_for_and_foreign_pages_are_not_answered(served: Served) -> None:
    http = served.backend.http
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        for method in ("GET", "POST", "DELETE"):
            answer = await http.request(method, "/mcp", json=call, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    large = await http.post("/mcp", content=b" " * (2**20 + 1))
    assert large.status_code == 413
