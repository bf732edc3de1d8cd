"""How fast is a photo-like 1024 × 1024 picture written as PNG, and how large does it get?

Times, in turns so that what else the machine does hits all alike: this project's writer, Pillow's
default, Pillow's level 1; the best of the runs. Each file is read back and compared pixel by pixel.

    python -m benchmarks.bench_png [--side N] [--runs N] [--image FILE]

`--image` measures on a picture of yours. Last line: JSON; seconds, bytes, and the aims' ratios
(at least 6 times as fast as Pillow's default, at most 1.2 times the bytes).
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sdxl_worker.answering.png import encode_png


def photo_like(side: int) -> Image.Image:
    """Smooth shapes of all sizes, as light makes them, with a sensor's grain."""
    rng = np.random.default_rng(0)
    total = np.full((side, side, 3), 0.5)
    for octave in range(2, 8):
        cells = 2**octave
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        smooth = noise.resize((side, side), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth) / 255 - 0.5) / 2 ** (octave - 2)
    grained = total * 255 + rng.normal(0, 2, (side, side, 3))
    return Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8))


def by_pillow(image: Image.Image, level: int) -> bytes:
    """Pillow's encoder at a zlib level; 6 is its default."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def measure(image: Image.Image, runs: int) -> dict[str, float]:
    """Best seconds and bytes of each writer."""
    writers: dict[str, Callable[[], bytes]] = {
        "ours": lambda: encode_png(image, {"parameters": "Steps: 28"}),
        "pillow_default": lambda: by_pillow(image, 6),
        "pillow_level_1": lambda: by_pillow(image, 1),
    }
    found: dict[str, float] = {}
    for _ in range(runs):
        for name, write in writers.items():
            started = time.perf_counter()
            data = write()
            seconds = time.perf_counter() - started
            found[f"{name}_s"] = min(seconds, found.get(f"{name}_s", seconds))
            found[f"{name}_bytes"] = len(data)
            if not np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(image)):
                raise RuntimeError(f"{name}: the picture that was read back is another one")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=1024, help="px")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    image = Image.open(args.image).convert("RGB") if args.image else photo_like(args.side)
    found = measure(image, args.runs)
    result = {
        "times_faster_than_pillow": found["pillow_default_s"] / found["ours_s"],
        "bytes_over_pillow": found["ours_bytes"] / found["pillow_default_bytes"],
        "size": list(image.size),
        **found,
    }
    for name in ("ours", "pillow_default", "pillow_level_1"):
        print(
            f"{name:15} {found[f'{name}_s'] * 1e3:7.1f} ms {found[f'{name}_bytes'] / 1e6:6.2f} MB"
        )
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
