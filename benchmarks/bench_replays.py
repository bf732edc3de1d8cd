"""Is a picture that is drawn again from its own receipt the same, pixel by pixel?

Draws pictures of the demo model through both services: from words, over other pictures (uploaded
and drawn ones), with masks, beyond their edges, with a second pass, enlarged; with its LoRAs at
several scales, several pictures a request and every file format. Then sends each file alone to
`POST /replays` and compares.
The last line is JSON: how many were drawn, by what they were drawn from, and how many were equal in
pixels and in bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from sdxl_client import Client, LoraUse
from testkit.processes import REPOSITORY, backend_process, free_port, worker_process

_DEMO = REPOSITORY / "demo_model"
_WORDS = ("parrot", "slice of pizza", "red apple", "panda", "rocket", "guitar", "cactus")
_GROUNDS = ("white", "yellow", "blue")
_FORMATS = ("png", "jpeg", "webp")
_SAMPLERS = (None, "euler_a", "dpmpp_2m")
_WAYS = ("words", "img2img", "inpaint", "outpaint", "hires", "upscale", "img2img")


def _requests(count: int, loras: list[str], inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Requests for `count` pictures in all; no two are alike."""
    asked = turn = 0
    while asked < count:
        way = _WAYS[turn % len(_WAYS)]
        number = 1 if way == "upscale" else min(1 + turn % 2, count - asked)
        used = [
            LoraUse(lora_model_id=lora, scale=0.5 + 0.25 * (turn % 4))
            for place, lora in enumerate(loras)
            if turn >> place & 1 and way != "upscale"
        ]
        request = {
            "way": way,
            "prompt": f"{_WORDS[turn % 7]}, {_GROUNDS[turn % 3]} background",
            "negative_prompt": "blurry" if turn % 2 else None,
            "seed": 1000 + 37 * turn,
            "steps": 4 + turn % 3,
            "cfg": 3.0 + turn % 4,
            "num_images": number,
            "scheduler": _SAMPLERS[turn % 3],
            "output_format": _FORMATS[turn % 3],
            "loras": used or None,
            **inputs.fields(way, turn),
        }
        if way == "upscale":  # it draws nothing, and takes nothing that says how
            for name in ("prompt", "negative_prompt", "seed", "steps", "cfg", "scheduler"):
                request[name] = None
        yield request
        asked += number
        turn += 1


@dataclass(frozen=True)
class Inputs:
    """Ids of what is drawn from: two uploaded pictures, a drawn one, and a mask."""

    pictures: list[str]
    mask: str

    def fields(self, way: str, turn: int) -> dict[str, Any]:
        """What a request says of pictures."""
        image = {"image": {"image_id": self.pictures[turn % len(self.pictures)]}}
        said: dict[str, dict[str, Any]] = {
            "words": {},
            "hires": {"hires": {"scale": 1.5, "steps": 2, "strength": 0.5}},
            "img2img": {**image, "strength": 0.6},
            "inpaint": {**image, "mask": {"image_id": self.mask}, "strength": 0.8},
            "outpaint": {**image, "outpaint": {"right": 32, "bottom": 32}},
            "upscale": {**image, "upscale": {"scale": 2}},
        }
        return said[way]


def _inputs(url: str, client: Client) -> Inputs:
    """What the pictures are drawn from: a slope of colours, a drawn picture sent again, its own."""
    drawn = client.generate("red apple, white background", seed=7, steps=6).images[0]
    slope = Image.linear_gradient("L").resize((160, 160))
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    sent = [
        _send(url, _png(Image.merge("RGB", (slope, slope.rotate(90), slope.rotate(180))))),
        _send(url, httpx2.get(drawn.url).content),
        str(drawn.id),
    ]
    return Inputs(sent, _send(url, _png(mask)))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _send(url: str, file: bytes) -> str:
    answer = httpx2.post(f"{url}/api/v1/images", files={"file": ("input.png", file)}, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["id"])


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
                found = _measure(client, f"http://127.0.0.1:{port}", options.pictures, folder)
    found["seconds"] = round(time.perf_counter() - began, 1)
    line = json.dumps(found)
    if options.json is not None:
        options.json.write_text(line + "\n")
    print(line)
    return 0 if found["equal_pixels"] == found["pictures"] else 1


def _measure(client: Client, url: str, count: int, folder: Path) -> dict[str, Any]:
    loras = [
        str(client.upload_lora(path).id) for path in sorted((_DEMO / "loras").glob("*.safetensors"))
    ]
    inputs = _inputs(url, client)
    files: list[Path] = []
    ways: Counter[str] = Counter()
    with_loras = 0
    for number, request in enumerate(_requests(count, loras, inputs)):
        way = request.pop("way")
        content = client.generate(request.pop("prompt"), **request)
        for place, image in enumerate(content.images):
            files.append(folder / f"{number}-{place}-{way}.{request['output_format']}")
            files[-1].write_bytes(httpx2.get(image.url).content)
            with_loras += bool(content.loras)
            ways[way] += 1
            print(f"drew {len(files)}: {way}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {
        "pictures": len(files),
        "with_loras": with_loras,
        "drawn_from": dict(ways),
        "equal_pixels": 0,
        "equal_files": 0,
    }
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
