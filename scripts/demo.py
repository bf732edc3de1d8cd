"""`make demo`: the main job for real, on this computer, in a few minutes.

Starts the backend and a worker with the small SDXL, and then does what any client does over HTTP:
uploads a LoRA, asks for a picture without it, with it, and without it again (same prompt, same
seed), and looks at what came back. It ends with an error unless the third picture equals the first
byte for byte, the second differs, every row can be read back, and every URL answers 200 now, 403
with a byte of it changed and 403 once it has expired.

Writes demo-output/: the PNGs, contact-sheet.png and report.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from scripts.contact_sheet import Tile, contact_sheet
from scripts.stack import REPOSITORY, StackError, build_stack, free_port, running
from sdxl_contract.prices import PRICES_AS_OF, USD_PER_SECOND

OUTPUT = REPOSITORY / "demo-output"
LORA_FILE = REPOSITORY / "demo_model" / "loras" / "line-art.safetensors"
LORA_SCALE = 1.0
SEED = 7
STEPS = 20
PRICED_GPU = "L4"
# Short, so that the demo can also show a URL that has expired.
URL_SECONDS = 10
PROMPTS = (
    "a slice of pizza, yellow background",
    "a cute panda, blue background",
    "a rocket on a purple background",
    "a photo of an owl, orange background",
)
COLUMNS = ("base", "with the LoRA", "base again")


class DemoError(RuntimeError):
    """Something is not as it must be; the message says what."""


@dataclass(frozen=True)
class Picture:
    """One finished picture: what was asked for, what came back, and its bytes."""

    column: str
    prompt: str
    content: dict[str, Any]
    data: bytes
    file: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the PNG, lower-case hex."""
        return hashlib.sha256(self.data).hexdigest()


class Client:
    """The few calls of the backend's API that the demo makes."""

    def __init__(self, base_url: str) -> None:
        self._http = httpx2.Client(base_url=base_url, timeout=90)

    def upload_lora(self, path: Path, name: str) -> dict[str, Any]:
        """Put a LoRA file into the library; the same bytes again give the one that is there."""
        with path.open("rb") as file:
            answer = self._http.post(
                "/api/v1/loras/models/upload",
                files={"file": (path.name, file, "application/octet-stream")},
                data={"name": name},
            )
        return self._json(answer, 200, 201)

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask for a picture and wait until it is there."""
        answer = self._http.post(
            "/api/v1/content/generate", json=body, headers={"Prefer": "wait=60"}
        )
        content = self._json(answer, 200, 202)
        while content["status"] in ("queued", "running"):
            time.sleep(0.5)
            content = self.content(content["id"])
        if content["status"] != "succeeded":
            raise DemoError(f"the picture {body['prompt']!r} failed: {content['error']}")
        return content

    def content(self, content_id: str) -> dict[str, Any]:
        """Read a content back; its image URL is signed anew."""
        return self._json(self._http.get(f"/api/v1/content/{content_id}"), 200)

    def fetch(self, url: str) -> httpx2.Response:
        """GET a signed URL."""
        return self._http.get(url)

    @staticmethod
    def _json(answer: httpx2.Response, *expected: int) -> dict[str, Any]:
        if answer.status_code not in expected:
            raise DemoError(
                f"{answer.request.method} {answer.request.url.path} answered "
                f"{answer.status_code}: {answer.text[:500]}"
            )
        result: dict[str, Any] = answer.json()
        return result


def check(condition: bool, message: str) -> None:
    """Raise `DemoError(message)` unless `condition`."""
    if not condition:
        raise DemoError(message)


def draw(client: Client, lora: dict[str, Any], number: int, prompt: str) -> list[Picture]:
    """The same prompt and seed without the LoRA, with it, and without it again."""
    pictures = []
    for place, column in enumerate(COLUMNS, start=1):
        body: dict[str, Any] = {"prompt": prompt, "seed": SEED, "steps": STEPS}
        if column == "with the LoRA":
            body["loras"] = [{"lora_model_id": lora["id"], "scale": LORA_SCALE}]
        content = client.generate(body)
        answer = client.fetch(content["image_url"])
        check(answer.status_code == 200, f"the image's URL answered {answer.status_code}")
        file = f"{number}{'abc'[place - 1]}-{column.replace(' ', '-')}.png"
        (OUTPUT / file).write_bytes(answer.content)
        picture = Picture(column, prompt, content, answer.content, file)
        check(
            picture.sha256 == content["images"][0]["sha256"],
            f"{file} is not what the row says was stored",
        )
        pictures.append(picture)
        seconds = sum(content["timings"].values())
        print(f"  {file:28} {seconds:5.1f} s  sha256 {picture.sha256[:16]}...", flush=True)
    base, styled, again = pictures
    check(again.data == base.data, f"{prompt!r}: the base after the LoRA differs from before")
    check(styled.data != base.data, f"{prompt!r}: the LoRA changed nothing")
    return pictures


def tampered(url: str) -> str:
    """`url` with its last character changed."""
    return url[:-1] + ("0" if url[-1] != "0" else "1")


def check_urls(client: Client, pictures: list[Picture]) -> dict[str, Any]:
    """Every row readable, every URL 200 while valid, 403 when changed, 403 when expired."""
    urls = [client.content(picture.content["id"])["image_url"] for picture in pictures]
    signed_at = time.monotonic()
    for url in urls:
        check(client.fetch(url).status_code == 200, "a fresh URL did not answer 200")
        check(client.fetch(tampered(url)).status_code == 403, "a changed URL did not answer 403")
    # A URL stays the same for as long again, so that browsers can cache the picture.
    time.sleep(max(0.0, 2 * URL_SECONDS + 2 - (time.monotonic() - signed_at)))
    for url in urls:
        check(client.fetch(url).status_code == 403, "an expired URL did not answer 403")
    return {"urls": len(urls), "valid": 200, "one_character_changed": 403, "expired": 403}


def report(lora: dict[str, Any], rows: list[list[Picture]], urls: dict[str, Any]) -> dict[str, Any]:
    """What demo-output/report.json says."""
    price = USD_PER_SECOND[PRICED_GPU]
    images = []
    for picture in (picture for row in rows for picture in row):
        seconds = sum(picture.content["timings"].values()) - picture.content["timings"]["queue"]
        images.append(
            {
                "file": picture.file,
                "content_id": picture.content["id"],
                "sha256": picture.sha256,
                "prompt": picture.prompt,
                "parameters": picture.content["parameters"],
                "timings_seconds": picture.content["timings"],
                "loras": picture.content["loras"],
                "cost": {
                    "usd": round(seconds * price, 8),
                    "seconds": round(seconds, 3),
                    "gpu": PRICED_GPU,
                    "usd_per_second": price,
                    "prices_as_of": PRICES_AS_OF,
                    "note": f"seconds measured on this CPU, priced as if on one {PRICED_GPU}",
                },
            }
        )
    return {
        "lora": lora,
        "images": images,
        "reset_proof": [
            {
                "prompt": base.prompt,
                "base_sha256": base.sha256,
                "with_lora_sha256": styled.sha256,
                "base_again_sha256": again.sha256,
                "base_again_equals_base": base.data == again.data,
                "with_lora_differs": base.data != styled.data,
            }
            for base, styled, again in rows
        ],
        "signed_urls": urls,
    }


def main() -> int:
    """0 when everything holds, 1 with a message otherwise."""
    data_dir = Path(os.environ.get("DATA_DIR") or REPOSITORY / ".data").resolve()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    stack = build_stack(
        port=free_port(),
        worker_port=free_port(),
        data_dir=data_dir,
        logs=OUTPUT / "logs",
        # Unsigned, so that anyone can compare the files: no two signatures are the same.
        extra={"IMAGE_URL_SECONDS": str(URL_SECONDS), "MARKING": "off"},
    )
    print("Starting PostgreSQL, the backend and a worker with the small SDXL ...", flush=True)
    try:
        with running(stack):
            client = Client(stack.backend_url)
            lora = client.upload_lora(LORA_FILE, "Line art")
            print(f"LoRA {lora['name']!r}: {lora['format']}, rank {lora['rank']}", flush=True)
            print("Drawing each prompt without the LoRA, with it, and without it again:")
            rows = [draw(client, lora, n, prompt) for n, prompt in enumerate(PROMPTS, start=1)]
            print("Checking every row and every URL (one must expire) ...", flush=True)
            urls = check_urls(client, [picture for row in rows for picture in row])
    except (DemoError, StackError, httpx2.HTTPError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        print(f"The logs are in {OUTPUT.name}/logs.", file=sys.stderr)
        return 1
    tiles = [[Tile(p.data, p.column) for p in row] for row in rows]
    contact_sheet(tiles, [row[0].prompt for row in rows]).save(OUTPUT / "contact-sheet.png")
    (OUTPUT / "report.json").write_text(json.dumps(report(lora, rows, urls), indent=2) + "\n")
    print(
        f"Done: in all {len(rows)} rows the third picture is the first, byte for byte, and the "
        f"second is not.\nLook at {OUTPUT.name}/contact-sheet.png and {OUTPUT.name}/report.json; "
        "`make serve` keeps it running."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
