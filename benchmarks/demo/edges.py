"""How well `demo_model/controls/edges` holds drawings: `python -m benchmarks.demo.edges`.

For each name that its training never saw, the worker draws the name; then, from another seed and
without a word, once freely and once held by the first picture's edges; then the name from that
seed, both ways. Asked is how far the edges agree: F1 of Canny's pixels, one that has a pixel of the
other picture within `NEAR` px counting as found. And which true picture is nearest, as in
`evaluate_demo_model`. The last line is JSON; `--sheet` keeps the pictures, a name a column.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo.drawing import Pixels, drawing, save_sheet
from benchmarks.evaluate_demo_model import rank_of
from demo_model import references
from demo_model.common import BACKGROUNDS, HELD_OUT, HERE, caption
from sdxl_contract.drawing.edges import canny

NEAR = 2  # px
FIRST_SEED, OTHER_SEED = 20260101, 20260501
Marks = NDArray[np.bool_]


def edges(picture: Pixels) -> Marks:
    """By the contract's thresholds: bool (H, W)."""
    return np.asarray(canny(Image.fromarray(picture), 100, 200))[..., 0] > 0


def widened(marks: Marks) -> Marks:
    """All pixels within `NEAR` px of a mark, diagonals as one."""
    found, padded = np.zeros_like(marks), np.pad(marks, NEAR)
    height, width = marks.shape
    for y in range(2 * NEAR + 1):
        for x in range(2 * NEAR + 1):
            found |= padded[y : y + height, x : x + width]
    return found


def agreement(found: Pixels, wanted: Pixels) -> float:
    """F1 of two pictures' edges, 0..1; 0 where either has none."""
    one, other = edges(found), edges(wanted)
    if not one.any() or not other.any():
        return 0.0
    precision = float((one & widened(other)).sum() / one.sum())
    recall = float((other & widened(one)).sum() / other.sum())
    return 2 * precision * recall / max(precision + recall, 1e-9)


async def evaluate(controls: Path, sheet: Path | None) -> dict[str, Any]:
    """Draw and compare."""
    known = references.load()
    grounds = list(BACKGROUNDS)
    columns: list[list[Pixels]] = []
    agreements: dict[str, list[float]] = {"free": [], "held": [], "named": [], "both": []}
    right: dict[str, int] = dict.fromkeys(agreements, 0)
    async with drawing(controls_dir=controls) as worker:
        for number, name in enumerate(known.names[HELD_OUT]):
            ground = grounds[number % len(grounds)]
            words, seed = caption(name, ground), OTHER_SEED + number
            source = await worker.draw(words, FIRST_SEED + number)
            control = {"model": "edges", "image": worker.source(source), "canny": {}}
            drawn = {
                "free": await worker.draw("", seed),
                "held": await worker.draw("", seed, controls=[control]),
                "named": await worker.draw(words, seed),
                "both": await worker.draw(words, seed, controls=[control]),
            }
            columns.append([source, *drawn.values()])
            truth = known.names.index(name)
            for kind, picture in drawn.items():
                agreements[kind].append(agreement(picture, source))
                order = references.nearest(picture, known.flat(ground))
                right[kind] += rank_of(truth, order) == 0
            scores = ", ".join(f"{kind} {each[-1]:.2f}" for kind, each in agreements.items())
            print(f"{words}: {scores}", flush=True)
    save_sheet(columns, sheet)
    count = len(columns)
    return {
        "names": count,
        "edges_f1": {kind: round(float(np.mean(each)), 3) for kind, each in agreements.items()},
        "least_held": round(min(agreements["held"]), 3),
        "top1": {kind: round(each / count, 3) for kind, each in right.items()},
    }


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--controls", type=Path, default=HERE / "controls")
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(evaluate(options.controls, options.sheet))))


if __name__ == "__main__":
    main()
