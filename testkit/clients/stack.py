"""The real stack that clients call, what its picture looks like, and what a client's script tells.

Nothing is installed here. Python clients are in the project's own environment, but for one; that
one and JavaScript's are there once `make setup-clients` was run. Without it their tests are left
out with a word on why; `make test-clients` fails instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest
from PIL import Image

from testkit.clients.certificates import by_tls, own_certificate
from testkit.processes import REPOSITORY

HERE = REPOSITORY / "tests" / "clients"
MODEL = REPOSITORY / "demo_model" / "sdxl-demo"
LORA_FILE = REPOSITORY / "demo_model" / "loras" / "line-art.safetensors"
# Of what cannot live beside the others.
CLIENTS_PYTHON = REPOSITORY / ".venv-clients" / "bin" / "python"
# Set by `make test-clients`.
REQUIRED = "REQUIRE_CLIENTS"
WANTED: dict[str, Any] = {
    "prompt": "a slice of pizza, yellow background",
    "seed": 7,
    "steps": 3,
    "cfg": 4.0,
    "width": 64,
    "height": 64,
}
LORA, SCALE = "Ink", 0.8


def left_out(reason: str) -> NoReturn:
    """Skip, or fail where every client is to be there."""
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Stack:
    """A backend with its worker, the key of a user, and what that user's picture looks like."""

    url: str
    key: str
    folder: Path
    plain: str
    styled: str

    @property
    def http(self) -> httpx2.Client:
        """A client of the API."""
        return client_of(self.url, self.key)


def client_of(url: str, key: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=url, headers=headers, timeout=120)


def pixels_of(data: bytes) -> str:
    """What the picture `data` shows, whatever its file format and marks are."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return f"{image.size}:{hashlib.sha256(image.tobytes()).hexdigest()}"


def with_a_picture(url: str, folder: Path) -> Stack:
    """A key of the running backend at `url`, a LoRA, and a picture without and with it."""
    made = subprocess.run(
        [sys.executable, "-m", "app.cli", "create-key"],
        cwd=REPOSITORY / "backend",
        env={**os.environ, "DATA_DIR": str(folder / "data")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    with client_of(url, key) as http:
        uploaded = http.post(
            "/api/v1/loras/models/upload",
            files={"file": ("ink.safetensors", LORA_FILE.read_bytes())},
            data={"name": LORA},
        )
        assert uploaded.status_code == 201, uploaded.text
        shown = []
        for loras in ([], [{"name": LORA, "scale": SCALE}]):
            answer = http.post("/api/v1/content/generate", json={**WANTED, "loras": loras})
            assert answer.json()["status"] == "succeeded", answer.text
            shown.append(pixels_of(httpx2.get(answer.json()["image_url"]).content))
    assert shown[0] != shown[1], "the LoRA changes nothing: these tests could not fail"
    return Stack(url, key, folder, *shown)


@contextlib.contextmanager
def certified(stack: Stack) -> Iterator[dict[str, str]]:
    """The environment of fal's client, which calls by https alone."""
    certificate = own_certificate(stack.folder)
    with by_tls(certificate, int(stack.url.rpartition(":")[2])) as port:
        yield {
            "FAL_KEY": stack.key,
            "FAL_RUN_HOST": f"127.0.0.1:{port}/fal/run",
            "FAL_QUEUE_RUN_HOST": f"127.0.0.1:{port}/fal/queue",
            "SSL_CERT_FILE": str(certificate),
        }


@dataclass(frozen=True)
class Told:
    """What a client's script printed: its pictures' contents, and whatever else it says."""

    pictures: list[str]
    facts: dict[str, Any]


Drive = Callable[..., Told]
