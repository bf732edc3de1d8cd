"""How well `demo_model/upscalers` enlarges: `python -m benchmarks.demo.upscaler`.

The names that its training never saw are known at twice the model's side. Each is made small, given
to the worker as it is (`clean`), as the autoencoder leaves it (`coded`) and as the model draws it
by its name (`drawn`), enlarged by the network, by Lanczos and by repeating pixels, and compared
with what it was: peak signal to noise in dB, the mean of all. The last line is JSON; `--sheet`
keeps the pictures, a name a column, from above: the drawn ones, the coded and the clean, each by
pixels, by Lanczos, by the network and in truth.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from demo_model import references
from demo_model.common import HERE, MODEL, SIZE, STEPS, caption
from sdxl_contract.request import GenerateRequest
from sdxl_worker.engine import Engine
from sdxl_worker.settings import Settings
from testkit.worker import FileServer, file_server

SEED = 20260601
NETWORK, LANCZOS, PIXELS = "demo-2x", "lanczos", "pixels"
KINDS = ("clean", "coded", "drawn")
Pixels = NDArray[np.uint8]


def decibels(found: Pixels, wanted: Pixels) -> float:
    """Peak signal to noise of two pictures."""
    error = np.square(found.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def halved(picture: Pixels) -> Pixels:
    """Each pixel the mean of four."""
    image = Image.fromarray(picture)
    return np.array(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX))


def repeated(picture: Pixels) -> Pixels:
    """Each pixel four times: what any enlarging has to better."""
    return picture.repeat(2, axis=0).repeat(2, axis=1)


@torch.no_grad()
def coded(vae: Any, picture: Pixels) -> Pixels:
    """What the autoencoder leaves of a picture."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = vae.decode(vae.encode(pixels).latent_dist.mean).sample[0]
    left: Pixels = ((found + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return left


class Enlarging:
    """Asks one engine for pictures."""

    def __init__(self, engine: Engine, files: FileServer) -> None:
        self._engine, self._files = engine, files

    async def _answer(self, **fields: Any) -> Pixels:
        request = GenerateRequest(timeout=280, **fields)
        result = await self._engine.submit(request).result()
        data = base64.b64decode(result.image_base64 or "")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    async def draw(self, prompt: str, seed: int) -> Pixels:
        """One picture from words."""
        return await self._answer(prompt=prompt, seed=seed, steps=STEPS, width=SIZE, height=SIZE)

    async def enlarge(self, picture: Pixels, upscaler: str) -> Pixels:
        """Twice the sides."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        image = {"url": self._files.add(file.getvalue(), "/small.png")}
        return await self._answer(
            prompt="", image=image, upscale={"upscaler": upscaler, "scale": 2}
        )


async def evaluate(upscalers: Path, sheet: Path | None) -> dict[str, Any]:
    """Make small, enlarge and compare."""
    config = Settings(
        base_model=str(MODEL),
        upscalers_dir=upscalers,
        device="cpu",
        dtype="float32",
        lora_allow_loopback=True,
        warmup=False,
    )
    engine = Engine(config)
    columns: list[list[Pixels]] = []
    found: dict[str, dict[str, list[float]]] = {
        kind: {way: [] for way in (PIXELS, LANCZOS, NETWORK)} for kind in KINDS
    }
    with file_server() as files:
        try:
            await engine.load()
            assert engine._ready is not None
            vae, enlarging = engine._ready.model.pipe.vae, Enlarging(engine, files)
            for number, truth in enumerate(references.large()):
                words, clean = caption(truth.name, truth.background), halved(truth.pixels)
                drawn = await enlarging.draw(words, SEED + number)
                column: list[Pixels] = []
                small = dict(zip(KINDS, (clean, coded(vae, clean), drawn), strict=True))
                for kind, picture in small.items():
                    ways = {PIXELS: repeated(picture)}
                    for way in (LANCZOS, NETWORK):
                        ways[way] = await enlarging.enlarge(picture, way)
                    for way, large in ways.items():
                        found[kind][way].append(decibels(large, truth.pixels))
                    column = [*ways.values(), truth.pixels, *column]
                columns.append(column)
                told = ", ".join(
                    f"{kind} {ways[NETWORK][-1]:.1f} dB ({LANCZOS} {ways[LANCZOS][-1]:.1f})"
                    for kind, ways in found.items()
                )
                print(f"{words}: {told}", flush=True)
        finally:
            await engine.aclose()
    if sheet is not None:
        rows = np.concatenate([np.concatenate(column) for column in columns], axis=1)
        Image.fromarray(rows).save(sheet, optimize=True)
    gains = {
        kind: [one - other for one, other in zip(ways[NETWORK], ways[LANCZOS], strict=True)]
        for kind, ways in found.items()
    }
    return {
        "names": len(columns),
        "decibels": {
            kind: {way: round(float(np.mean(each)), 2) for way, each in ways.items()}
            for kind, ways in found.items()
        },
        "least_gain": {kind: round(min(each), 2) for kind, each in gains.items()},
    }


def main() -> None:
    """Draw, enlarge, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upscalers", type=Path, default=HERE / "upscalers")
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(evaluate(options.upscalers, options.sheet))))


if __name__ == "__main__":
    main()
