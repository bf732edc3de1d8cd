"""`sdxl mcp`: the server's tools for agents that speak MCP over stdin and stdout.

Each message goes to the server's `/mcp` as it is, and what comes back goes to stdout: the tools are
the server's. Must not know: the tools.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import httpx2

from sdxl_client.cli.config import read_login

_VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
_SERVER_ERROR = -32000
_TIMEOUT = httpx2.Timeout(90.0, connect=10.0)
# Whose parameter of which name goes into a header, too.
_NAMES = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

Write = Callable[[str], None]


def mcp() -> None:
    """Serve the tools to an agent on this computer, over stdin and stdout."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())


async def _serve() -> None:
    login = read_login()
    headers = {"Authorization": f"Bearer {login.api_key}"} if login.api_key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT) as http:
        bridge = Bridge(http, f"{login.url.rstrip('/')}/mcp", _print)
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line.strip():
                bridge.take(line)
        await bridge.finish()


def _print(line: str) -> None:
    print(line, flush=True)


class Bridge:
    """Messages of one agent, on their way to the server and back."""

    def __init__(self, http: httpx2.AsyncClient, url: str, write: Write) -> None:
        self._http = http
        self._url = url
        self._write = write
        self._version: str | None = None  # as a handshake agreed on it
        self._under_way: dict[Any, asyncio.Task[None]] = {}

    def take(self, line: str) -> None:
        """Pass one message on; what it answers comes by itself."""
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._fail(None, -32700, "Parse error: a line must be a JSON object")
            return
        method, key = message.get("method"), message.get("id")
        if key is None:
            if method == "notifications/cancelled":
                task = self._under_way.get((message.get("params") or {}).get("requestId"))
                if task is not None:
                    task.cancel()
            return  # the server keeps no session that others could concern
        task = asyncio.create_task(self._pass_on(message))
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key, None))

    async def finish(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _pass_on(self, message: dict[str, Any]) -> None:
        try:
            async with self._http.stream(
                "POST", self._url, json=message, headers=self._headers(message)
            ) as response:
                kind = response.headers.get("content-type", "").partition(";")[0]
                if kind == "text/event-stream":
                    async for line in response.aiter_lines():
                        if line.startswith("data:") and line[5:].strip():
                            self._answer(message, line[5:].strip())
                    return
                text = (await response.aread()).decode("utf-8", "replace")
                if kind == "application/json":
                    self._answer(message, json.dumps(json.loads(text)))
                else:
                    self._fail(message["id"], _SERVER_ERROR, _reason(text, response.status_code))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            what = f"the server could not be reached ({type(error).__name__})"
            self._fail(message["id"], _SERVER_ERROR, what)

    def _headers(self, message: dict[str, Any]) -> dict[str, str]:
        method, params = str(message.get("method", "")), message.get("params")
        params = params if isinstance(params, dict) else {}
        headers = {
            "Accept": "application/json, text/event-stream",
            "Mcp-Method": _visible(method),
        }
        if name := params.get(_NAMES.get(method, "")):
            headers["Mcp-Name"] = _visible(str(name))
        version = (params.get("_meta") or {}).get(_VERSION_KEY) or self._version
        if version and method != "initialize":
            headers["MCP-Protocol-Version"] = _visible(str(version))
        return headers

    def _answer(self, message: dict[str, Any], text: str) -> None:
        if message.get("method") == "initialize":
            with contextlib.suppress(ValueError, AttributeError):
                result = json.loads(text).get("result") or {}
                self._version = result.get("protocolVersion") or self._version
        self._write(text)

    def _fail(self, key: Any, code: int, what: str) -> None:
        error = {"jsonrpc": "2.0", "id": key, "error": {"code": code, "message": what}}
        self._write(json.dumps(error))


def _visible(text: str) -> str:
    return "".join(letter for letter in text if "!" <= letter <= "~")[:200]


def _reason(text: str, status: int) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        detail = json.loads(text).get("detail")
        if detail:
            return str(detail)
    return f"the server answered with status {status}"
