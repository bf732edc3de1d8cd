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
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.demo.drawing import Pixels, drawing, save_sheet
from demo_model import references
from demo_model.common import HERE, caption

SEED = 20260601
NETWORK, LANCZOS, PIXELS = "demo-2x", "lanczos", "pixels"
KINDS = ("clean", "coded", "drawn")


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


async def evaluate(upscalers: Path, sheet: Path | None) -> dict[str, Any]:
    """Make small, enlarge and compare."""
    columns: list[list[Pixels]] = []
    found: dict[str, dict[str, list[float]]] = {
        kind: {way: [] for way in (PIXELS, LANCZOS, NETWORK)} for kind in KINDS
    }
    async with drawing(upscalers_dir=upscalers) as worker:
        for number, truth in enumerate(references.large()):
            words, clean = caption(truth.name, truth.background), halved(truth.pixels)
            drawn = await worker.draw(words, SEED + number)
            column: list[Pixels] = []
            small = dict(zip(KINDS, (clean, coded(worker.vae, clean), drawn), strict=True))
            for kind, picture in small.items():
                ways = {PIXELS: repeated(picture)}
                for way in (LANCZOS, NETWORK):
                    ways[way] = await worker.ask(
                        prompt="",
                        image=worker.source(picture),
                        upscale={"upscaler": way, "scale": 2},
                    )
                for way, large in ways.items():
                    found[kind][way].append(decibels(large, truth.pixels))
                column = [*ways.values(), truth.pixels, *column]
            columns.append(column)
            told = ", ".join(
                f"{kind} {ways[NETWORK][-1]:.1f} dB ({LANCZOS} {ways[LANCZOS][-1]:.1f})"
                for kind, ways in found.items()
            )
            print(f"{words}: {told}", flush=True)
    save_sheet(columns, sheet)
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
