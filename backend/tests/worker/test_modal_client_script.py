"""`test_modal_client_local.py` as people run it: a process with arguments and an exit code."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from PIL import Image

from testkit.doubles.http_server import Reply
from testkit.doubles.modal_edge_double import ModalEdgeDouble, Run
from testkit.loras.plain_bytes import kohya_lora

BACKEND = Path(__file__).resolve().parents[2]
TOKEN = "script-token-123"


async def run(*arguments: str) -> tuple[int, str]:
    """The script's exit code and everything that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "test_modal_client_local.py", *arguments),
        cwd=BACKEND,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_picture_is_drawn_reported_and_written(tmp_path: Path) -> None:
    lora, picture = tmp_path / "ink.safetensors", tmp_path / "out" / "picture.png"
    lora.write_bytes(kohya_lora())
    async with ModalEdgeDouble(token=TOKEN) as edge:
        code, output = await run(
            *("--url", edge.url, "--token", TOKEN, "--prompt", "a cat", "--lora-file", str(lora)),
            *("--width", "512", "--height", "512", "--output", str(picture)),
        )
        assert code == 0, output
        sent = edge.posts[0].json()
    assert (sent["prompt"], sent["width"], len(sent["loras"])) == ("a cat", 512, 1)
    assert sent["loras"][0]["url"].startswith("http://127.0.0.1:")
    assert Image.open(picture).size == (512, 512)
    for expected in ("client initialisation", "base64 both ways", "denoise", "sha256", "unchanged"):
        assert expected in output
    assert TOKEN not in output


async def test_each_way_to_fail_has_its_exit_code() -> None:
    async with ModalEdgeDouble(token=TOKEN) as edge:
        edge.plan(Run(says=Reply(403, b"<html>")))
        failed, wrong_size, no_token, usage = await asyncio.gather(
            run("--url", edge.url, "--token", TOKEN, "--width", "512", "--height", "512"),
            run("--url", edge.url, "--token", TOKEN, "--width", "700"),
            run("--url", edge.url, "--token", ""),
            run("--url", "worker.example"),
        )
    assert failed[0] == 1
    assert "GENERATION_FAILED" in failed[1]
    assert wrong_size[0] == 1
    assert "nearest allowed is 704" in wrong_size[1]
    assert no_token[0] == 3
    assert "UNAUTHORIZED" in no_token[1]
    assert usage[0] == 2
