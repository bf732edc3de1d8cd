"""The pages of clients: their lines run as they stand, with a server's address and key put in."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import uuid
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from standardwebhooks.webhooks import WebhookVerificationError
from typer.testing import CliRunner

from app.models.base import utc_now
from app.models.webhook import Signing
from app.services.webhooks.signing import new_secret, shown_secret, standard_headers
from sdxl_client.cli.app import app as command
from testkit.backend import Served
from testkit.clients.pages import (
    ADDRESS,
    FOLDER,
    KEY,
    PROGRAMS,
    SECRET,
    Entered,
    Example,
    entered,
    examples,
)
from testkit.documents import REPOSITORY
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

LANGUAGES = {"python", "javascript", "json", "bash", "text"}
# Here; all others run as processes of their own (tests/clients/test_pages.py).
PACKAGES = ("openai", "replicate", "webuiapi", "sdxl_client")
HERE = [one for one in examples("python") if any(map(one.imports, PACKAGES))]
SETTINGS = [one for one in examples("bash", "text") if one.page.parent == PROGRAMS]
TEXTS_MAX_LINES = 40


@pytest.fixture(autouse=True)
def own_address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures' URLs lead to the port that was found for the test."""
    if "served" in request.fixturenames:
        served: Served = request.getfixturevalue("served")
        monkeypatch.setattr(served.backend.app.state.services.storage, "_base_url", served.url)


def run(example: Example, served: Served) -> list[str]:
    """What the example prints."""
    printed: list[str] = []
    code = compile(
        example.pointed(served.url, served.key),
        example.name,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )
    names: dict[str, Any] = {"print": lambda *parts: printed.append(" ".join(map(str, parts)))}
    waits = eval(code, names)
    if waits is not None:
        asyncio.run(waits)
    return printed


@pytest.mark.parametrize("example", HERE, ids=lambda one: one.name)
async def test_a_pages_python_runs(
    example: Example,
    served: Served,
    inference: InferenceDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = await served.backend.upload(kohya_lora(), "Ink")
    printed = await asyncio.to_thread(run, example, served)
    [request] = inference.requests
    assert request.prompt == "a red apple"
    [used] = request.loras
    assert (used.sha256, used.scale) == (lora["sha256"], 0.8 if "0.8" in example.code else 1.0)
    if "seed" in example.code and "seed=7" in example.code.replace('": ', "="):
        assert request.seed == 7
    assert printed or "save" in example.code


def test_no_example_of_python_is_left_to_nobody() -> None:
    elsewhere = ("fal_client", "litellm", "langchain_community", "standardwebhooks")
    for one in examples("python"):
        assert one in HERE or any(map(one.imports, elsewhere)), one.name


async def test_the_pages_commands_are_ours(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ink.safetensors").write_bytes(kohya_lora())
    codes = [example.pointed(served.url, served.key) for example in examples("bash")]
    for line in "".join(codes).splitlines():
        words = shlex.split(line)
        if words[0] == "sdxl":
            # On a terminal the key is asked for.
            words += ["--key-stdin"] if words[1] == "login" else []
            done = await asyncio.to_thread(
                CliRunner().invoke, command, words[1:], input=f"{served.key}\n"
            )
            assert done.exit_code == 0, (line, done.output)
        else:
            assert words[0] in ("export", "pipx"), line
            assert len(words) in (2, 3), line
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == "".join(codes).count("sdxl generate") > 0


async def test_what_a_page_has_entered_is_answered(served: Served) -> None:
    asked = 0
    async with httpx2.AsyncClient() as http:
        for example in SETTINGS:
            for key, status in ((served.key, 200), ("sdxl_wrong", 401)):
                for one in entered(example, served.url, key):
                    answer = await http.get(one.url, headers={"Authorization": one.authorization})
                    assert answer.status_code == status, example.name
                    asked += 1
    assert asked >= 2 * len({example.page for example in SETTINGS})


def test_what_is_entered_is_read_as_the_programs_do() -> None:
    def read(code: str) -> list[Entered]:
        return entered(Example(Path("x.md"), 0, "text", code), "http://h:1", "k")

    assert read(f"URL {ADDRESS}/v1/images/generations\nKey {KEY}") == [
        Entered("http://h:1/v1/models", "Bearer k")
    ]
    expected = Entered("http://h:1/sdapi/v1/options", "Basic eDpr")
    assert read(f"URL={ADDRESS}\nAUTH=x:{KEY}") == [expected]
    assert read(f"URL=http://x:{KEY}@127.0.0.1:8000") == [expected]
    with pytest.raises(AssertionError, match="no key"):
        read(f"URL {ADDRESS}")


async def test_the_agents_page_leads_to_the_tools(served: Served) -> None:
    configured: dict[str, dict[str, Any]] = {}
    for example in examples("json"):
        if example.page.stem == "agents":
            told = json.loads(example.pointed(served.url, served.key))["mcpServers"]["pictures"]
            configured["url" if "url" in told else "command"] = told
    process, remote = configured["command"], configured["url"]
    assert process["command"] == "sdxl"
    assert CliRunner().invoke(command, [*process["args"], "--help"]).exit_code == 0
    async with (
        httpx2.AsyncClient(headers=remote["headers"], timeout=20) as http,
        Client(streamable_http_client(remote["url"], http_client=http)) as client,
    ):
        names = {tool.name for tool in (await client.list_tools()).tools}
    assert {"generate_image", "list_loras", "get_image"} <= names


def test_the_receivers_lines_tell_true_from_forged() -> None:
    [example] = [one for one in examples("python") if one.imports("standardwebhooks")]
    secret = new_secret(Signing.HMAC)
    names: dict[str, Any] = {}
    exec(example.code.replace(SECRET, shown_secret(secret)), names)
    for kind, told in (("content.succeeded", "https://a/b.png"), ("webhook.test", "webhook.test")):
        data = {"images": [{"url": "https://a/b.png"}]}
        body = json.dumps({"type": kind, "data": data}).encode()
        moment = int(utc_now().timestamp())
        headers = dict(standard_headers([secret], f"msg_{uuid.uuid4().hex}", moment, body))
        assert names["receive"](body, headers) == told
        with pytest.raises(WebhookVerificationError):
            names["receive"](body + b" ", headers)


def test_every_page_is_short_says_what_was_run_and_stands_in_the_table() -> None:
    table = (FOLDER / "README.md").read_text()
    for page in sorted(PROGRAMS.glob("*.md")):
        text = page.read_text()
        assert len(text.splitlines()) <= TEXTS_MAX_LINES, page.name
        assert f"(programs/{page.name})" in table, page.name
        assert "not run" in text or re.search(r"^Run with ", text, re.MULTILINE), page.name
        tests = re.findall(r"`(test_\w+)`", text)
        assert tests, f"{page.name} names no test"
        assert any(KEY in one.code or SECRET in one.code for one in examples() if one.page == page)
    assert {one.language for one in examples()} <= LANGUAGES
    for page in re.findall(r"\(((?:programs/)?[\w-]+\.md)\)", table):
        assert (FOLDER / page).is_relative_to(REPOSITORY), page
        assert (FOLDER / page).exists(), page
