"""How much of the watermark survives, and whether it is ever found where there is none.

Marks the demo model's pictures (the 96 of its contact sheet, 128 px) and synthetic photographs of
1024 px, changes them as people do, and reads them again; then reads 10,000 pictures without a
mark: demo pictures cut, scaled, mirrored and compressed in other ways, and synthetic ones.
The last line is JSON: shares that were read, by attack; PSNR; false positives; milliseconds.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.services.marking.watermark.spread import mark, read

Pixels = NDArray[np.uint8]
_SHEET = Path(__file__).resolve().parent.parent / "demo_model" / "contact-sheet.png"
_SIDE = 128
_SEED = 20261127


def demo_pictures() -> list[Pixels]:
    """The 96 pictures of the contact sheet: half of them plain, half black lines on white."""
    with Image.open(_SHEET) as opened:
        sheet = np.asarray(opened.convert("RGB"))
    return [
        sheet[top : top + _SIDE, left : left + _SIDE]
        for top in range(0, sheet.shape[0], _SIDE)
        for left in range(0, sheet.shape[1], _SIDE)
    ]


def photograph(number: int, side: int) -> Pixels:
    """Noise with a photograph's spectrum, discs with edges, and a smooth sky."""
    draw = np.random.default_rng((_SEED, number))
    axis = np.fft.fftfreq(side)
    frequency = np.hypot(axis[:, None], axis)
    frequency[0, 0] = 1
    shape = (side, side)
    common = np.fft.fft2(draw.normal(size=shape))
    channels = []
    for _ in range(3):
        own = common + 0.4 * np.fft.fft2(draw.normal(size=shape))
        texture = np.fft.ifft2(own / frequency ** (0.8 + 0.1 * (number % 6))).real
        channels.append(45 * texture / texture.std() + draw.uniform(60, 200))
    picture = np.stack(channels, axis=2)
    rows, columns = np.mgrid[:side, :side] / side
    for _ in range(12):
        row, column, radius = draw.uniform(0, 1, 3)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < (radius / 4) ** 2
        picture[disc] = 0.3 * picture[disc] + 0.7 * draw.uniform(0, 255, 3)
    sky = rows < draw.uniform(0, 0.4)
    picture[sky] = (200 - 80 * rows[sky] + draw.normal(0, 1, int(sky.sum())))[:, None]
    pixels: Pixels = np.clip(picture, 0, 255).astype(np.uint8)
    return pixels


def jpeg(pixels: Pixels, quality: int = 75) -> Pixels:
    """Saved as JPEG and opened again."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB"))


def scaled(pixels: Pixels, by: float = 0.5) -> Pixels:
    """Resized with Lanczos' filter."""
    height, width = (max(1, round(side * by)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def cut(pixels: Pixels) -> Pixels:
    """Without a tenth of each side's length, from somewhere."""
    draw = np.random.default_rng(int(pixels.astype(np.int64).sum()))
    height, width = pixels.shape[:2]
    top, left = draw.integers(0, height // 10 + 1), draw.integers(0, width // 10 + 1)
    return pixels[top : top + height - height // 10, left : left + width - width // 10]


ATTACKS: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda pixels: pixels,
    "jpeg_75": jpeg,
    "half_size": scaled,
    "crop_10": cut,
    "three_quarters": lambda pixels: scaled(pixels, 0.75),
    "jpeg_50": lambda pixels: jpeg(pixels, 50),
    "half_size_jpeg_75": lambda pixels: jpeg(scaled(pixels)),
    "crop_10_jpeg_75": lambda pixels: jpeg(cut(pixels)),
    "crop_10_half_size": lambda pixels: scaled(cut(pixels)),
    "all_three": lambda pixels: jpeg(scaled(cut(pixels))),
    "quarter_size": lambda pixels: scaled(pixels, 0.25),
}


def survival(pictures: list[Pixels]) -> dict[str, Any]:
    """Shares of `pictures` whose own payload was read, by attack, and what marking cost."""
    payloads = [int(value) for value in np.random.PCG64(_SEED).random_raw(len(pictures)) >> 32]
    marked, mark_ms, read_ms, psnr = [], [], [], []
    for picture, payload in zip(pictures, payloads, strict=True):
        began = time.process_time()
        marked.append(mark(picture, payload))
        mark_ms.append(1000 * (time.process_time() - began))
        error = np.mean(np.square(marked[-1].astype(float) - picture))
        psnr.append(float(10 * np.log10(255**2 / error)))
    shares: dict[str, float] = {}
    for name, attack in ATTACKS.items():
        found = 0
        for picture, payload in zip(marked, payloads, strict=True):
            attacked = attack(picture)
            began = time.process_time()
            reading = read(attacked)
            read_ms.append(1000 * (time.process_time() - began))
            found += reading is not None and reading.payload == payload
        shares[name] = round(found / len(pictures), 4)
        print(f"{name}: {found} of {len(pictures)}", flush=True)
    return {
        "pictures": len(pictures),
        "side": len(pictures[0]),
        "read": shares,
        "psnr_db_lowest": round(min(psnr), 2),
        "mark_cpu_ms": round(statistics.median(mark_ms), 1),
        "read_cpu_ms": round(statistics.median(read_ms), 1),
    }


def unmarked(number: int) -> Pixels:
    """Picture `number` of those without a mark: three of four from the demo's, changed."""
    draw = np.random.default_rng((_SEED, 1, number))
    if number % 4 == 3:
        pixels = photograph(10_000 + number, 160)
    else:
        pixels = _demo()[number % 96]
        if draw.random() < 0.5:
            pixels = pixels[:, ::-1]
        left, top = draw.integers(0, 24, 2)
        pixels = scaled(pixels[top:, left:], draw.uniform(0.6, 1.5))
    return jpeg(pixels, int(draw.integers(40, 96))) if draw.random() < 0.5 else pixels


@functools.cache
def _demo() -> list[Pixels]:
    return demo_pictures()


def false_positives(count: int) -> int:
    """In how many of `count` unmarked pictures a mark is found."""
    found = 0
    for number in range(count):
        found += read(np.ascontiguousarray(unmarked(number))) is not None
        if number % 500 == 499:
            print(f"{number + 1} unmarked: {found} false", file=sys.stderr, flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; ends with 1 where a mark is found in a picture without one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=20)
    parser.add_argument("--unmarked", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = {
        "demo": survival(demo_pictures()),
        "photographs": survival([photograph(n, 1024) for n in range(options.photographs)]),
        "unmarked": options.unmarked,
        "false_positives": false_positives(options.unmarked),
    }
    line = json.dumps(found)
    if options.json is not None:
        options.json.write_text(line + "\n")
    print(line)
    return 1 if found["false_positives"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
