"""The client's pure parts: what is sent again, how streams are read, what is kept."""

from __future__ import annotations

import inspect
import json
import stat
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from sdxl_client import ApiError, AsyncClient, Client, ConnectionLost, LoraUse, calls, models
from sdxl_client.calls import Call
from sdxl_client.cli import config
from sdxl_client.cli.app import app as command
from sdxl_client.cli.config import Login
from sdxl_client.cli.contents import read_lora, read_size
from sdxl_client.errors import SdxlError
from sdxl_client.retrying import EventLines, pause

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
GET: Call[Any] = calls.model()
ONCE: Call[Any] = calls.replay("x")


def refused(status: int, retry_after: float | None = None) -> ApiError:
    return ApiError(status, {"detail": "no", "error_code": "X"}, retry_after)


@pytest.mark.parametrize(
    ("call", "error", "tried", "again"),
    [
        (GET, ConnectionLost("x"), 1, True),
        (GET, ConnectionLost("x"), 5, False),
        (GET, refused(503), 1, True),
        (GET, refused(503, 3), 1, True),
        (GET, refused(429, 3600), 1, False),
        (GET, refused(422), 1, False),
        (GET, refused(500), 1, False),
        (ONCE, ConnectionLost("x"), 1, False),
        (ONCE, refused(503), 1, False),
        (ONCE, refused(429, 1), 1, True),
    ],
)
def test_what_may_be_sent_again(call: Call[Any], error: SdxlError, tried: int, again: bool) -> None:
    seconds = pause(call, error, tried, retries=4)
    assert (seconds is not None) is again
    if isinstance(error, ApiError) and again and error.retry_after is not None:
        assert seconds == error.retry_after


def test_a_stream_is_put_together_from_its_lines() -> None:
    lines = EventLines()
    text = (
        'id: 7\nevent: progress\ndata: {"step":\ndata: 3}\n\n: ping\n\nevent: queued\ndata: {}\n\n'
    )
    events = [event for line in text.split("\n") if (event := lines.take(line))]
    assert [(event.type, event.data, event.id) for event in events] == [
        ("progress", {"step": 3}, "7"),
        ("queued", {}, None),
    ]
    assert lines.last_id == "7"


def test_a_repeated_call_keeps_its_idempotency_key() -> None:
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["idempotency-key"])
        if len(seen) < 3:
            raise httpx2.ReadError("broken")
        return httpx2.Response(200, json={"batch_id": "00000000-0000-0000-0000-000000000001"})

    with Client("http://x", transport=httpx2.MockTransport(answer), retries=4) as client:
        assert client._send(calls.batch({"prompts": ["a"]}))
        assert len(seen) == 3
        assert len(set(seen)) == 1
        client._send(calls.batch({"prompts": ["a"]}))
    assert len(set(seen)) == 2


def test_both_clients_have_the_same_methods() -> None:
    def shown(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert shown(Client) == shown(AsyncClient)


@pytest.mark.parametrize(
    ("model", "component"),
    [
        (models.Content, "ContentOut"),
        (models.Image, "ImageOut"),
        (models.Cost, "CostOut"),
        (models.Lora, "LoraOut"),
        (models.Batch, "BatchOut"),
        (models.Webhook, "WebhookWithSecret"),
        (models.Key, "KeyWithSecret"),
        (models.Verification, "VerificationOut"),
        (models.Comparison, "ComparisonOut"),
    ],
)
def test_models_know_what_the_server_always_answers(model: Any, component: str) -> None:
    """Against the committed document: a field that a later server adds is kept as an extra."""
    schemas = json.loads(DOCUMENT.read_text(encoding="utf-8"))["components"]["schemas"]
    known = set(model.model_fields)
    served = set(schemas[component]["properties"])
    assert known <= served
    for field, info in model.model_fields.items():
        if info.is_required():
            assert field in schemas[component]["required"]


def test_a_login_is_kept_for_its_user_alone_and_sent_to_no_other_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.get_app_dir", lambda _: str(tmp_path / "sdxl"))
    for name in ("SDXL_URL", "SDXL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert config.read_login().api_key is None
    path = config.keep_login(Login("https://a.example", "secret"))
    path = config.keep_login(Login("https://a.example", "secret"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert config.read_login() == Login("https://a.example", "secret")
    monkeypatch.setenv("SDXL_URL", "https://b.example")
    assert config.read_login() == Login("https://b.example", None)
    monkeypatch.setenv("SDXL_API_KEY", "other")
    assert config.read_login() == Login("https://b.example", "other")
    path.write_text("{", encoding="utf-8")
    assert config.read_login().api_key == "other"
    assert config.forget_login()
    assert not config.forget_login()


def test_what_a_lora_is_called_on_the_command_line() -> None:
    client = Client("http://x")
    assert read_lora(client, "Ink") == LoraUse(name="Ink", scale=1.0)
    assert read_lora(client, "Ink:0.5") == LoraUse(name="Ink", scale=0.5)
    assert read_lora(client, "Ink: the second") == LoraUse(name="Ink: the second", scale=1.0)
    assert read_size("640x480") == (640, 480)
    client.close()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["login", "--url", "nonsense", "--key-stdin"], "https://"),
        (["login", "--url", "http://127.0.0.1:1"], "--key-stdin"),
        (["generate", "x", "--lora", "x.safetensors:abc"], "no number"),
        (["batch", "nobody.txt"], "is not there"),
        (["get", "not-an-id"], "0f8fad5b-"),
        (["cancel", "../model"], "`sdxl ls`"),
        (["replay", "not-an-id"], "0f8fad5b-"),
        (["webhooks", "rm", "x"], "`sdxl webhooks ls`"),
        (["keys", "rm", "x"], "`sdxl keys ls`"),
        (["generate", "x", "--out", "x.safetensors/sub"], "cannot be made a folder"),
        (["batch", "x.safetensors", "--out", "x.safetensors"], "cannot be made a folder"),
    ],
)
def test_wrong_usage_says_what_is_right(
    arguments: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDXL_URL", "http://127.0.0.1:1")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    done = CliRunner().invoke(command, arguments, input="k\n")
    assert (done.exit_code, hint in done.output) == (2, True), done.output


def test_the_version_is_the_packages() -> None:
    done = CliRunner().invoke(command, ["--version"])
    assert (done.exit_code, done.output) == (0, f"sdxl {version('sdxl-client')}\n")
