"""How well `demo_model/adapters` shows a picture: `python -m benchmarks.demo.adapter`.

The worker draws without a word, 20 steps, from one seed a name: once freely, and once with the
name's true picture as a reference: on another background each time, smaller, moved, and every other
one mirrored. Asked is which true picture is nearest among all, as in `evaluate_demo_model`, and
which background the corners have. `known` are every `--every`th name of those that the adapter was
trained on, `held_out` those that it never saw. The last line is JSON; `--sheet` keeps the pictures,
a name a column: the reference, what is drawn with it, and freely.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from benchmarks.demo.drawing import Pixels, drawing, save_sheet
from demo_model import references
from demo_model.common import BACKGROUNDS, HELD_OUT, HERE, SIZE

SEED = 20260701
ADAPTER = "pictures"
SMALLER, MOVED = 28, 3  # px of references.SIDE: the side of what is shown, and how far it goes
CORNER = 8  # px


def reference(known: references.References, index: int, background: str) -> Pixels:
    """A name's picture as no training drew it: uint8 (SIZE, SIZE, 3)."""
    whole = Image.fromarray(known.flat(background)[index].round().clip(0, 255).astype(np.uint8))
    small = whole.resize((SMALLER, SMALLER), Image.Resampling.BOX)
    if index % 2:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = Image.new("RGB", whole.size, BACKGROUNDS[background])
    canvas.paste(small, (index % (MOVED + 1), index // 4 % (MOVED + 1)))
    return np.array(canvas.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def ground_of(picture: Pixels) -> str:
    """The background that the corners are nearest to."""
    ends = (slice(CORNER), slice(-CORNER, None))
    mean = np.mean([picture[y, x].mean(axis=(0, 1)) for y in ends for x in ends], axis=0)
    colours = {name: np.array(ImageColor.getrgb(code)) for name, code in BACKGROUNDS.items()}
    return min(colours, key=lambda name: float(np.square(colours[name] - mean).sum()))


async def evaluate(adapters: Path, every: int, sheet: Path | None) -> dict[str, Any]:
    """Show, draw and compare."""
    known = references.load()
    grounds = list(BACKGROUNDS)
    held_out = known.names[HELD_OUT]
    trained = [name for name in known.names if name not in held_out]
    groups = {"known": trained[::every], "held_out": held_out}
    columns: list[list[Pixels]] = []
    found: dict[str, Any] = {}
    async with drawing(adapters_dir=adapters) as worker:
        for group, names in groups.items():
            right = {"shown": 0, "free": 0}
            same_ground = dict(right)
            for number, name in enumerate(names):
                index, ground = known.names.index(name), grounds[number % len(grounds)]
                like = reference(known, index, ground)
                shown = {"adapter": ADAPTER, "image": worker.source(like)}
                drawn = {
                    "shown": await worker.draw("", SEED + index, references=[shown]),
                    "free": await worker.draw("", SEED + index),
                }
                columns.append([like, *drawn.values()])
                told = []
                for kind, picture in drawn.items():
                    nearest = references.nearest(picture, known.flat(ground))[0]
                    right[kind] += nearest == index
                    same_ground[kind] += ground_of(picture) == ground
                    told.append(f"{kind} {known.names[nearest]}, {ground_of(picture)}")
                print(f"{name}, {ground}: {'; '.join(told)}", flush=True)
            found[group] = {
                "names": len(names),
                "top1": {kind: round(each / len(names), 3) for kind, each in right.items()},
                "ground": {kind: round(each / len(names), 3) for kind, each in same_ground.items()},
            }
    save_sheet(columns, sheet)
    return found


def main() -> None:
    """Show, draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=Path, default=HERE / "adapters")
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(evaluate(options.adapters, options.every, options.sheet))))


if __name__ == "__main__":
    main()
