"""What the browser tests share: the running studio, small LoRA files, rows for a full gallery."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psycopg
from PIL import Image
from playwright.sync_api import ConsoleMessage, Error, Page
from starlette.datastructures import URL

from app.core.security import key_digest, new_api_key
from scripts.stack import Service
from testkit.loras.plain_bytes import safetensors_bytes

OpenPage = Callable[..., Page]
AXE = Path(__file__).resolve().parents[1] / "tests" / "browser" / "vendor" / "axe.min.js"
WAIT_MS = 60_000
# The smallest and quickest pictures that the small model draws.
SMALL = {"width": 64, "height": 64, "steps": 4}


@dataclass(frozen=True)
class Studio:
    """A running backend with its page; `database` is a PostgreSQL URL that psycopg takes."""

    url: str
    worker_url: str
    data_dir: Path
    database: str
    backend: Service

    def make_key(self, owner: str) -> str:
        """An API key of `owner`; from then on every call needs one."""
        key = new_api_key()
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO api_key (id, owner, name, key_sha256) VALUES (%s, %s, %s, %s)",
                (uuid.uuid4(), owner, owner, key_digest(key)),
            )
        return key

    def draw(self, prompt: str, *, wait: bool = True, **values: Any) -> dict[str, Any]:
        """Ask for a picture without the page."""
        answer = httpx2.post(
            f"{self.url}/api/v1/content/generate",
            json={"prompt": prompt, **SMALL, **values},
            headers={"Prefer": "wait=60" if wait else "respond-async"},
            timeout=90,
        )
        assert answer.status_code in (200, 202), answer.text
        content: dict[str, Any] = answer.json()
        return content

    def batch(self, *prompts: str) -> str:
        """Ask for a batch without the page; its id."""
        answer = httpx2.post(
            f"{self.url}/api/v1/content/batch", json={"prompts": prompts, **SMALL}, timeout=30
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["batch_id"])

    def content(self, content_id: str) -> dict[str, Any]:
        """A content as the API shows it."""
        content: dict[str, Any] = httpx2.get(f"{self.url}/api/v1/content/{content_id}").json()
        return content


@dataclass
class Watch:
    """What a page did: its errors, and the hosts that it asked."""

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    # Parts of messages that a test provokes, such as a refused key's status.
    expected: list[str] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        """Note what `page` does from now on."""

        def on_error(error: Error) -> None:
            self.errors.append(str(error))

        def on_message(message: ConsoleMessage) -> None:
            if message.type == "error":
                self.errors.append(message.text)

        page.on("pageerror", on_error)
        page.on("console", on_message)
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.hosts.add(URL(url).hostname or url)

    @property
    def unexpected(self) -> list[str]:
        """Errors that no test provoked."""
        return [e for e in self.errors if not any(part in e for part in self.expected)]


def fitting_lora(worker_url: str, trigger: str = "inkstyle") -> bytes:
    """A LoRA for the model that the worker has loaded."""
    health = httpx2.get(f"{worker_url}/health?include=modules", timeout=30).json()
    name, (rows, columns) = next(
        (name, shape)
        for name, shape in health["signature"]["modules"].items()
        if name.endswith("attn2.to_k")
    )
    return safetensors_bytes(
        {f"{name}.lora_A.weight": (2, columns), f"{name}.lora_B.weight": (rows, 2)},
        {"modelspec.trigger_phrase": trigger},
        seed=1,
    )


def fill_gallery(studio: Studio, owner: str, count: int) -> None:
    """`count` finished contents of `owner`, a second apart, the newest with the highest seed."""
    bases = []
    folder = studio.data_dir / "objects" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(8):
        path = folder / f"{owner}{number}.png"
        Image.new("RGB", (64, 64), tuple((number * k) % 256 for k in (31, 67, 97))).save(path)
        bases.append((path, hashlib.sha256(path.read_bytes()).hexdigest()))
    begun = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    with psycopg.connect(studio.database) as connection, connection.cursor() as cursor:
        ids = [uuid.uuid4() for _ in range(count)]
        columns = (
            "id, owner, status, attempt, prompt, negative_prompt, parameters, loras, "
            "request_sha256, model_clean, created_at, started_at, finished_at"
        )
        with cursor.copy(f"COPY generation ({columns}) FROM STDIN") as copy:
            for seed, content_id in enumerate(ids):
                made = begun + datetime.timedelta(seconds=seed)
                parameters = {
                    **SMALL,
                    "cfg": 5.5,
                    "seed": seed,
                    "num_images": 1,
                }
                copy.write_row(
                    (
                        *(content_id, owner, "succeeded", 1, f"picture {seed}", ""),
                        *(json.dumps(parameters), "[]", "0" * 64, True, made, made, made),
                    )
                )
        columns = (
            "id, generation_id, position, object_key, seed, width, height, sha256, size_bytes, "
            "media_type"
        )
        with cursor.copy(f"COPY content_piece ({columns}) FROM STDIN") as copy:
            for seed, content_id in enumerate(ids):
                base, digest = bases[seed % len(bases)]
                key = f"gallery/{content_id}.png"
                os.link(base, studio.data_dir / "objects" / key)
                size = base.stat().st_size
                copy.write_row(
                    (
                        *(uuid.uuid4(), content_id, 0, key, seed, 64, 64, digest, size),
                        "image/png",
                    )
                )


def wait_until(page: Page, script: str) -> Any:
    """Wait until `script`, evaluated in the page, gives something true; what it gave.

    Playwright's own `wait_for_function` evaluates again from within the page, which the page's
    Content-Security-Policy forbids: it fails whenever the first look is too early.
    """
    end = time.monotonic() + WAIT_MS / 1000
    while not (value := page.evaluate(script)):
        assert time.monotonic() < end, f"still not so: {script}"
        page.wait_for_timeout(50)
    return value


def check_accessibility(page: Page, name: str) -> None:
    """Fail with what axe-core finds on the page as it stands."""
    if not page.evaluate("() => 'axe' in window"):
        # Evaluated by the debugger, which the page's Content-Security-Policy does not bind.
        page.evaluate(AXE.read_text())
    found = page.evaluate(
        """() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa',
        'wcag22aa', 'best-practice']}).then((result) => result.violations.map(
        (one) => `${one.id}: ${one.help}: ${one.nodes.map((n) => n.html + ' ' + n.failureSummary)
        .join(' | ')}`))"""
    )
    assert found == [], f"{name}: " + "\n".join(found)
