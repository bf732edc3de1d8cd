"""How well the small model draws: `make evaluate-demo-model`. The last line is JSON.

Draws 100 training captions with fixed seeds, without and with the line-art LoRA, through the
worker's own loading code and LoRA engine, and asks of each picture which true picture is nearest
(L2 on 32x32 RGB). Chance is 1 in 151. Writes the first 48 of both as a contact sheet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from demo_model import references
from demo_model.common import BACKGROUNDS, GUIDANCE, HERE, LORAS, MODEL, SIZE, STEPS, caption
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.lora import LoraPatcher, lora_targets, parse_lora
from sdxl_worker.settings import Settings

COUNT = 100
SHEET = 48
SHEET_COLUMNS = 12
BATCH = 10
SEED = 20260101
Pixels = NDArray[np.uint8]


def chosen_captions(names: list[str]) -> list[tuple[str, str]]:
    """`COUNT` pairs of name and background, drawn once and for all."""
    pairs = [(name, background) for name in names for background in BACKGROUNDS]
    return random.Random(SEED).sample(pairs, COUNT)


def generate(pipe: Any, prompts: list[str], first_seed: int) -> list[Pixels]:
    """One picture a prompt, each with its own seed: uint8 (H, W, 3)."""
    pictures: list[Pixels] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        seeds = range(first_seed + start, first_seed + start + len(batch))
        with torch.inference_mode():
            images = pipe(
                batch,
                height=SIZE,
                width=SIZE,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="pil",
            ).images
        pictures += [np.asarray(image.convert("RGB")) for image in images]
    return pictures


def saturation(pictures: list[Pixels]) -> float:
    """Mean chroma of all pixels: max - min over the channels, 0..1 (HSV's S times V).

    Not S alone: of a nearly black pixel it says nothing, (9, 3, 6) counting as half saturated.
    """
    pixels = np.stack(pictures).astype(np.float32)
    return float((pixels.max(axis=-1) - pixels.min(axis=-1)).mean() / 255)


def hsv_saturation(pictures: list[Pixels]) -> float:
    """Mean of HSV's S, (max - min) / max, black as 0, 0..1."""
    pixels = np.stack(pictures).astype(np.float32)
    high, low = pixels.max(axis=-1), pixels.min(axis=-1)
    return float(((high - low) / np.maximum(high, 1)).mean())


def rank_of(truth: int, order: NDArray[np.intp]) -> int:
    """Place of the true name among all, 0 for the nearest."""
    return int(np.flatnonzero(order == truth)[0])


def sheet(base: list[Pixels], styled: list[Pixels], path: Path) -> None:
    """The first `SHEET` pictures, each with its LoRA version below, in rows of twelve."""
    rows = []
    for start in range(0, SHEET, SHEET_COLUMNS):
        end = start + SHEET_COLUMNS
        rows += [np.concatenate(pictures[start:end], axis=1) for pictures in (base, styled)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path, optimize=True)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, default=HERE / "contact-sheet.png")
    parser.add_argument("--verbose", action="store_true", help="name each picture that is wrong")
    options = parser.parse_args()
    known = references.load()
    pairs = chosen_captions(known.names)
    prompts = [caption(*pair) for pair in pairs]
    model = load_model(Settings(base_model=str(MODEL), device="cpu", warmup=False))
    pipe = model.pipe
    targets = lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    patcher = LoraPatcher(targets)
    lora = parse_lora(LORAS / "line-art.safetensors", targets)

    started = time.perf_counter()
    base = generate(pipe, prompts, SEED)
    seconds = (time.perf_counter() - started) / COUNT
    with patcher.applied([(lora, 1.0)]):
        styled = generate(pipe, prompts, SEED)
    with patcher.applied([(lora, 0.0)]):
        zero = generate(pipe, prompts[:BATCH], SEED)
    patcher.verify_full()

    truths = [known.names.index(name) for name, _ in pairs]
    flat = {background: known.flat(background) for background in BACKGROUNDS}
    ranks = {"base": [], "lora": []}  # type: dict[str, list[int]]
    for picture, line, truth, (_, background) in zip(base, styled, truths, pairs, strict=True):
        ranks["base"].append(rank_of(truth, references.nearest(picture, flat[background])))
        ranks["lora"].append(rank_of(truth, references.nearest(line, known.line_art())))
    sheet(base, styled, options.sheet)
    if options.verbose:
        for kind, places in ranks.items():
            wrong = [f"{prompts[i]} ({p + 1}.)" for i, p in enumerate(places) if p]
            print(f"{kind}, not nearest: {'; '.join(wrong)}")

    def top(kind: str, count: int) -> float:
        return sum(place < count for place in ranks[kind]) / COUNT

    digest = hashlib.sha256(b"".join(p.tobytes() for p in base[:BATCH])).hexdigest()
    result = {
        "top1_base": top("base", 1),
        "top5_base": top("base", 5),
        "top1_lora": top("lora", 1),
        "top5_lora": top("lora", 5),
        "saturation_ratio": round(saturation(styled) / saturation(base), 4),
        "hsv_saturation_ratio": round(hsv_saturation(styled) / hsv_saturation(base), 4),
        "scale0_identical": all(np.array_equal(a, b) for a, b in zip(zero, base, strict=False)),
        "lora_differs": not np.array_equal(styled[0], base[0]),
        "seconds_per_image": round(seconds, 3),
        "bytes": folder_bytes(MODEL),
        "names": len(known.names),
        "first_pictures_sha256": digest,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
