"""Is a picture that is drawn again from its own receipt the same, pixel by pixel?

Draws pictures of the demo model through both services, with its LoRAs at several scales, several
pictures a request and every file format; then sends each file alone to `POST /replays` and
compares.
The last line is JSON: how many were drawn, and how many were equal in pixels and in bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from sdxl_client import Client, LoraUse
from testkit.processes import REPOSITORY, backend_process, free_port, worker_process

_DEMO = REPOSITORY / "demo_model"
_WORDS = ("parrot", "slice of pizza", "red apple", "panda", "rocket", "guitar", "cactus")
_GROUNDS = ("white", "yellow", "blue")
_FORMATS = ("png", "jpeg", "webp")
_SAMPLERS = (None, "euler_a", "dpmpp_2m")


def _requests(count: int, loras: list[str]) -> Iterator[dict[str, Any]]:
    """Requests for `count` pictures in all; no two are alike."""
    asked = 0
    while asked < count:
        number = min(1 + asked % 3, count - asked)
        used = [
            LoraUse(lora_model_id=lora, scale=0.5 + 0.25 * (asked % 4))
            for place, lora in enumerate(loras)
            if asked >> place & 1
        ]
        yield {
            "prompt": f"{_WORDS[asked % 7]}, {_GROUNDS[asked % 3]} background",
            "negative_prompt": "blurry" if asked % 2 else None,
            "seed": 1000 + 37 * asked,
            "steps": 6 + asked % 3,
            "cfg": 3.0 + asked % 4,
            "num_images": number,
            "scheduler": _SAMPLERS[asked % 3],
            "output_format": _FORMATS[asked % 3],
            "loras": used or None,
        }
        asked += number


def main(arguments: list[str] | None = None) -> int:
    """Draw, draw again, compare; ends with 1 where a picture differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "worker").mkdir()
        port = free_port()
        with worker_process(folder / "worker", _DEMO / "sdxl-demo") as worker:
            endpoint = f"{worker}/generate-image"
            with (
                backend_process(folder / "data", port, MODAL_ENDPOINT_URL=endpoint),
                Client(f"http://127.0.0.1:{port}", timeout=120) as client,
            ):
                found = _measure(client, options.pictures, folder)
    found["seconds"] = round(time.perf_counter() - began, 1)
    line = json.dumps(found)
    if options.json is not None:
        options.json.write_text(line + "\n")
    print(line)
    return 0 if found["equal_pixels"] == found["pictures"] else 1


def _measure(client: Client, count: int, folder: Path) -> dict[str, Any]:
    loras = [
        str(client.upload_lora(path).id) for path in sorted((_DEMO / "loras").glob("*.safetensors"))
    ]
    files: list[Path] = []
    with_loras = 0
    for number, request in enumerate(_requests(count, loras)):
        content = client.generate(request.pop("prompt"), **request)
        for place, image in enumerate(content.images):
            files.append(folder / f"{number}-{place}.{request['output_format']}")
            files[-1].write_bytes(httpx2.get(image.url).content)
            with_loras += bool(content.loras)
            print(f"drew {len(files)}", file=sys.stderr, flush=True)
    found = {"pictures": len(files), "with_loras": with_loras, "equal_pixels": 0, "equal_files": 0}
    for file in files:
        content = client.wait(client.replay_file(file).id)
        compared = client.compare(file, content.id)
        found["equal_pixels"] += bool(compared.same_pixels)
        found["equal_files"] += compared.same_file
        print(f"{file.name}: {compared.summary}", file=sys.stderr, flush=True)
        if not compared.is_equal:
            print(f"{file.name}: {compared.summary}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
