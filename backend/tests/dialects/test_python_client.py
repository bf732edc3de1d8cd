"""The project's own client and command line against a real backend."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from app.services.marking.unsigned import without_manifest
from sdxl_client import (
    ApiError,
    AsyncClient,
    Client,
    Comparison,
    ContentFailed,
    LoraUse,
    Unauthorized,
)
from sdxl_client.cli import app as command
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.result import Phase, ProgressEvent
from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.url, served.key, retries=0) as client:
        yield client


async def test_a_pictures_way_from_words_to_a_file(
    client: AsyncClient, served: Served, tmp_path: Path, inference: InferenceDouble
) -> None:
    (tmp_path / "ink.safetensors").write_bytes(kohya_lora())
    lora = await client.upload_lora(tmp_path / "ink.safetensors", tags=["a", "b"])
    assert (await client.upload_lora(tmp_path / "ink.safetensors")).id == lora.id
    content = await client.generate(
        "a red apple", loras=[LoraUse(name="ink", scale=0.5)], seed=7, num_images=2
    )
    assert [image.seed for image in content.images] == [7, 8]
    assert content.loras[0]["lora_model_id"] == str(lora.id)
    again = await client.replay(content.id)
    again = await client.wait(again.id)
    assert again.images[0].sha256 == content.images[0].sha256
    listed = [one.id async for one in client.contents(page_size=1)]
    assert listed == [again.id, content.id]
    inference.failures = [GenerationFailed("not finite")]
    with pytest.raises(ContentFailed, match="not finite"):
        await client.generate("x")
    batch = await client.batch(["a", "b"], count=2)
    assert batch.total == 4
    await client.delete(content.id)
    with pytest.raises(ApiError) as caught:
        await client.get(content.id)
    assert (caught.value.status, caught.value.code) == (404, "NOT_FOUND")
    with pytest.raises(ApiError) as refused:
        await client.generate("x", steps=1000)
    assert (refused.value.field, refused.value.status) == ("steps", 422)


async def test_what_happens_is_streamed_and_a_wait_ends(
    client: AsyncClient, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    inference.event_pause = 0.6
    inference.events = [ProgressEvent(phase=Phase.DENOISE, step=7, steps=28)]
    content = await client.submit("a red apple")
    with pytest.raises(TimeoutError):
        await client.wait(content.id, 0.3)
    types = []
    async for event in client.stream(content.id):
        types.append(event.type)
        if event.type == "progress":
            assert event.data["step"] == 7
            inference.gate.set()
    assert types[-1] == "succeeded"
    assert "progress" in types


async def test_the_client_that_waits_does_the_same(served: Served) -> None:
    def use() -> tuple[Any, ...]:
        with Client(served.url, served.key) as client:
            content = client.generate("a red apple", seed=7)
            assert [one.id for one in client.contents()] == [content.id]
            hook = client.add_webhook("https://example.com/hook")
            assert client.webhooks()[0].id == hook.id
            client.delete_webhook(hook.id)
            made = client.add_key("a bot's")
            names = [one.name for one in client.keys()]  # noqa: SIM118
            assert names == ["test", "a bot's"]
            with Client(served.url, made.key) as bot:
                assert [one.id for one in bot.contents()] == [content.id]
            client.revoke_key(made.id)
            return content.images[0].seed, hook.secret, client.session()["signed_in"]

    seed, secret, signed_in = await asyncio.to_thread(use)
    assert (seed, secret[:6], signed_in) == (7, "whsec_", True)
    async with AsyncClient(served.url, "wrong") as wrong:
        with pytest.raises(Unauthorized):
            await wrong.loras()


@pytest.fixture
def run(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `sdxl …` as a program would, and in a folder of its own."""
    monkeypatch.setattr("typer.get_app_dir", lambda _: str(tmp_path / "config"))
    monkeypatch.setenv("SDXL_URL", served.url)
    monkeypatch.setenv("SDXL_API_KEY", served.key)
    monkeypatch.chdir(tmp_path)

    async def invoke(*arguments: str, stdin: str = "") -> Result:
        # The server of this test would write its log into what the runner takes for the output.
        with structlog.testing.capture_logs():
            return await asyncio.to_thread(CliRunner().invoke, command.app, arguments, stdin)

    return invoke


async def test_the_command_line_draws_and_manages(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setattr(
        Client, "download", lambda _self, content: [b"\x89PNG" for _ in content.images]
    )
    (tmp_path / "ink.safetensors").write_bytes(kohya_lora())
    drawn = await run(
        "generate", "a red apple", "--lora", "ink.safetensors:0.8", "--seed", "7", "--out", "."
    )
    assert drawn.exit_code == 0, drawn.output
    told = json.loads(drawn.stdout)
    assert [Path(name).name for name in told["files"]] == [f"{told['id'][:8]}-7.png"]
    assert (tmp_path / told["files"][0]).read_bytes() == b"\x89PNG"
    named = await run("generate", "x", "--lora", "ink:0.5", "--quiet", "--no-wait")
    assert (await run("get", named.stdout.strip())).exit_code == 0
    assert json.loads((await run("loras", "ls")).stdout)[0]["name"] == "ink"
    assert named.stdout.strip() in (await run("ls", "--quiet")).stdout.split()
    (tmp_path / "prompts.txt").write_text("a\n\nb\n", encoding="utf-8")
    batch = await run("batch", "prompts.txt", "--count", "2")
    assert (json.loads(batch.stdout)["succeeded"], batch.exit_code) == (4, 0)
    again = await run("replay", told["id"])
    assert json.loads(again.stdout)["images"][0]["seed"] == 7
    assert (await run("loras", "rm", "ink")).exit_code == 0
    added = json.loads((await run("webhooks", "add", "https://example.com/")).stdout)
    assert added["secret"].startswith("whsec_")
    assert json.loads((await run("webhooks", "ls")).stdout)[0]["secret"] is None
    assert (await run("webhooks", "rm", added["id"])).exit_code == 0
    made = json.loads((await run("keys", "add", "a bot's")).stdout)
    assert made["key"].startswith("sdxl_")
    assert [one["current"] for one in json.loads((await run("keys", "ls")).stdout)] == [True, False]
    assert (await run("keys", "rm", made["id"])).exit_code == 0
    assert (await run("keys", "ls", "--quiet")).stdout.split() != [made["id"]]
    assert all(line["ok"] for line in json.loads((await run("doctor")).stdout))
    assert json.loads((await run("whoami")).stdout)["name"] == "test"


@pytest.mark.long
async def test_the_command_line_verifies_and_draws_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    content = json.loads((await run("generate", "a\x1b[31m red apple", "--seed", "7")).stdout)
    picture = (await served.backend.http.get(content["image_url"])).content
    (tmp_path / "mine.png").write_bytes(picture)
    bare = without_manifest(picture)
    assert bare is not None
    (tmp_path / "bare.png").write_bytes(bare)
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")

    for kept in ("SDXL_API_KEY", None):
        if kept is None:
            monkeypatch.delenv("SDXL_API_KEY")  # needs no account
        for file, state, code in (("mine.png", "trusted", 0), ("bare.png", "unsigned", 3)):
            found = await run("verify", file, "--quiet")
            assert (found.stdout.strip(), found.exit_code) == (state, code)
    assert json.loads((await run("verify", "mine.png")).stdout)["manifest"]["facts"]["seed"] == 7
    monkeypatch.setattr("sdxl_client.cli.marks.wants_json", lambda _: False)
    shown = await run("verify", "mine.png")
    assert "seed       7" in shown.stdout
    assert "\x1b" not in shown.stdout
    refused = await run("verify", "text.png")
    assert refused.exit_code == 1
    assert (await run("verify", "gone.png")).exit_code == 2

    monkeypatch.setenv("SDXL_API_KEY", served.key)
    again = await run("replay", "mine.png")
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith("equal: Every pixel is equal")
    assert (await run("replay", "mine.png", "--quiet")).stdout.strip() == "equal"
    assert (await run("replay", "bare.png")).exit_code == 1
    assert (await run("replay", "gone.png")).exit_code == 2
    monkeypatch.setattr(
        Client,
        "compare",
        lambda *_: Comparison(
            content_id=content["id"], is_equal=False, same_file=False, summary="2 pixels differ"
        ),
    )
    other = await run("replay", "mine.png")
    assert (other.exit_code, other.stdout.splitlines()[0]) == (3, "DIFFERENT: 2 pixels differ")


async def test_the_command_lines_exit_codes(
    run: Any, monkeypatch: pytest.MonkeyPatch, served: Served, inference: InferenceDouble
) -> None:
    assert (await run("generate")).exit_code == 2
    assert (await run("generate", "x", "--size", "big")).exit_code == 2
    inference.failures = [GenerationFailed("not finite")]
    failed = await run("generate", "x")
    assert failed.exit_code == 1
    assert "not finite" in failed.stderr

    inference.gate.clear()

    def interrupted(self: Client, content_id: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Client, "stream", interrupted)
        stopped = await run("generate", "x")
    inference.gate.set()
    assert stopped.exit_code == 130
    [newest] = (await served.backend.http.get("/api/v1/content?limit=1")).json()["items"]
    assert newest["status"] in ("cancelled", "running")

    monkeypatch.setenv("SDXL_API_KEY", "wrong")
    assert (await run("whoami")).exit_code == 4
    logged_in = await run("login", "--url", served.url, "--key-stdin", stdin="wrong\n")
    assert logged_in.exit_code == 4
    monkeypatch.delenv("SDXL_API_KEY")
    logged_in = await run("login", "--url", served.url, "--key-stdin", stdin=f"{served.key}\n")
    assert logged_in.exit_code == 0, logged_in.output
    assert (await run("ls")).exit_code == 0
    unknown = ["sdxl", "get", str(uuid.uuid4())]
    for argv, code in ((["sdxl", "get", "x"], 2), (unknown, 1), (["sdxl", "ls"], 4)):
        if code == 4:
            monkeypatch.setenv("SDXL_API_KEY", "wrong")
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(command.main)
        assert ended.value.code == code
