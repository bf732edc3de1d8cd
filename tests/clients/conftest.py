"""The clients that people have, as processes of their own, and the real stack that they call.

Nothing is installed here: `make setup-clients` did that before. Without it these tests are left
out with a word on why; `make test-clients` fails instead.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from testkit.processes import REPOSITORY, backend_process, free_port, worker_process

HERE = Path(__file__).parent
MODEL = REPOSITORY / "demo_model" / "sdxl-demo"
LORA_FILE = REPOSITORY / "demo_model" / "loras" / "line-art.safetensors"
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


def left_out(reason: str) -> None:
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
        return _client(self.url, self.key)


def _client(url: str, key: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=url, headers=headers, timeout=120)


def pixels_of(data: bytes) -> str:
    """What the picture `data` shows, whatever its file format and marks are."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return f"{image.size}:{hashlib.sha256(image.tobytes()).hexdigest()}"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Backend, PostgreSQL and worker with the small SDXL, as `make serve` runs them."""
    # Not below pytest's folder: PostgreSQL runs as another user where tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="client-tests-"))
    port = free_port()
    try:
        with (
            worker_process(folder, MODEL) as worker,
            backend_process(
                folder / "data",
                port,
                MODAL_ENDPOINT_URL=f"{worker}/generate-image",
                WEBHOOK_ALLOW_LOOPBACK="true",
                JOB_CONCURRENCY="2",
            ),
        ):
            yield _with_a_picture(f"http://127.0.0.1:{port}", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_a_picture(url: str, folder: Path) -> Stack:
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
    with _client(url, key) as http:
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


@dataclass(frozen=True)
class Told:
    """What a client's script printed: its pictures' contents, and whatever else it says."""

    pictures: list[str]
    facts: dict[str, Any]


Drive = Callable[..., Told]


@pytest.fixture
def drive(stack: Stack) -> Drive:
    """Runs a client's script against the stack."""

    def run(*command: str, **environment: str) -> Told:
        done = subprocess.run(
            command,
            cwd=HERE,
            env={
                **os.environ,
                "SDXL_URL": stack.url,
                "SDXL_KEY": stack.key,
                "WANTED": json.dumps({**WANTED, "lora": LORA, "scale": SCALE}),
                "PYTHONPATH": str(HERE / "python"),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {(done.stdout + done.stderr)[-4000:]}"
        told = json.loads(done.stdout.splitlines()[-1])
        pictures = [pixels_of(base64.b64decode(picture)) for picture in told.pop("pictures", [])]
        return Told(pictures, told)

    return run
