"""`sdxl_client` alone, as `pipx install ./client` has it: neither torch nor the server's code."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testkit.clients.stack import (
    CLIENTS_PYTHON,
    LORA_FILE,
    SCALE,
    WANTED,
    Stack,
    left_out,
    pixels_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(600)]

ALONE = CLIENTS_PYTHON.parent.parent / "alone" / "bin"
SERVERS = ("torch", "diffusers", "fastapi", "sqlalchemy", "app", "sdxl_worker", "sdxl_contract")


@pytest.fixture(scope="session")
def installed() -> None:
    """Of the session, as the stack is: without the client no stack is started."""
    if not (ALONE / "sdxl").exists():
        left_out("the client alone is not there: make setup-clients")


@pytest.fixture
def sdxl(installed: None, tmp_path: Path) -> Any:
    """Runs the command with a home of its own; what it prints on stdout."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}

    def run(*arguments: str, stdin: str = "", expected: int = 0) -> str:
        done = subprocess.run(
            [str(ALONE / "sdxl"), *arguments],
            cwd=tmp_path,
            env={**inherited, "HOME": str(tmp_path / "home")},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == expected, (arguments, done.stdout, done.stderr)
        return done.stdout

    return run


def test_it_brings_nothing_of_a_server(installed: None) -> None:
    find = f"import importlib.util as u; print([n for n in {SERVERS!r} if u.find_spec(n)])"
    found = subprocess.run(
        [str(ALONE / "python"), "-I", "-c", find], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_it_draws_with_a_lora_file_into_this_folder(
    installed: None, sdxl: Any, stack: Stack, tmp_path: Path
) -> None:
    sdxl("login", "--url", stack.url, "--key-stdin", stdin="sdxl_wrong\n", expected=4)
    sdxl("login", "--url", stack.url, "--key-stdin", stdin=f"{stack.key}\n")
    assert json.loads(sdxl("whoami"))["url"] == stack.url
    assert all(line["ok"] for line in json.loads(sdxl("doctor")))
    lora = tmp_path / "line-art.safetensors"
    lora.write_bytes(LORA_FILE.read_bytes())
    drawn = json.loads(
        sdxl(
            *("generate", WANTED["prompt"], "--lora", f"line-art.safetensors:{SCALE}"),
            *("--seed", "7", "--steps", "3", "--cfg", "4", "--size", "64x64", "--out", "."),
        )
    )
    [picture] = tmp_path.glob("*.png")
    assert pixels_of(picture.read_bytes()) == stack.styled
    content = drawn["id"]
    assert json.loads(sdxl("ls"))[0]["id"] == content
    assert json.loads(sdxl("get", content))["status"] == "succeeded"
    [kept] = json.loads(sdxl("loras", "ls"))
    assert kept["name"] == "Ink"  # the same file: it was there
    (tmp_path / "wants.txt").write_text("an owl\na rocket\n")
    sdxl("batch", "wants.txt", "--size", "64x64", "--out", "batch")
    assert len(list((tmp_path / "batch").glob("*.png"))) == 2
    sdxl("verify", picture.name)
    sdxl("replay", picture.name)
