"""What 8 bits cost and change: swaps that keep the copy in step, and pictures beside 16 bits'.

Nothing here is compiled, so that it takes seconds; what compiling makes of it is a row of the
service's. On a CPU the same products run, in the same bits.
Must not know: HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.evaluate_demo_model import (
    SEED,
    Pixels,
    chosen_captions,
    generate,
    rank_of,
)
from benchmarks.gpu_check.speeds import SCALE, Ours, Rows, median_ms
from demo_model import references
from demo_model.common import LORAS, MODEL, caption
from sdxl_worker.drawing.speeds import make_fp8
from sdxl_worker.fp8.numbers import E4M3, multiplies_by_rows, product, quantised
from sdxl_worker.fp8.unet import shapes
from sdxl_worker.graphs.cuda import CudaRecorder
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.lora import LoraPatcher, lora_targets, parse_lora
from sdxl_worker.settings import Settings

# Rows of inputs: two sides of guidance at 1024x1024, in the deeper layers.
_ROWS = 2048


def difference(one: Pixels | bytes, other: Pixels | bytes) -> float:
    """Mean absolute difference of two pictures of one size, of 255."""
    sides = [
        np.frombuffer(side, np.uint8) if isinstance(side, bytes) else side for side in (one, other)
    ]
    return float(np.abs(sides[0].astype(np.int16) - sides[1].astype(np.int16)).mean())


@contextmanager
def drawn_by(pipe: Any, unet: Any) -> Iterator[None]:
    """The pipeline with another UNet."""
    own, pipe.unet = pipe.unet, unet
    try:
        yield
    finally:
        pipe.unet = own


def quality(device: str, count: int) -> Rows:
    """Pictures of the demo model for `count` captions in 16 bit (32 on a CPU) and in 8: how many
    are nearest to the true one, without and with a LoRA, and how far apart they are."""
    model = load_model(Settings(base_model=str(MODEL), device=device, warmup=False))
    pipe = model.pipe
    targets = lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    patcher = LoraPatcher(targets)
    weight = pipe.unet.conv_in.weight
    by_rows = multiplies_by_rows(weight.device, weight.dtype, shapes(pipe.unet))
    if by_rows is None:
        raise RuntimeError("this device multiplies no 8 bits")
    twin, weights = make_fp8(pipe.unet, targets, by_rows=by_rows)
    patcher.follow(weights)
    lora = parse_lora(LORAS / "line-art.safetensors", targets).to(device)
    known = references.load()
    pairs = chosen_captions(known.names)[:count]
    prompts = [caption(*pair) for pair in pairs]
    truths = [known.names.index(name) for name, _ in pairs]
    found: Rows = {"by_rows": by_rows, "captions": count, "layers": len(twin.layers)}
    for kind, loras in (("base", []), ("lora", [(lora, 1.0)])):
        with patcher.applied(loras):
            exact = generate(pipe, prompts, SEED)
            with drawn_by(pipe, twin.unet):
                eight = generate(pipe, prompts, SEED)
        nearest = [
            known.flat(background) if kind == "base" else known.line_art()
            for _, background in pairs
        ]
        for name, pictures in (("top1", exact), ("top1_fp8", eight)):
            ranks = [
                rank_of(truth, references.nearest(picture, among))
                for picture, truth, among in zip(pictures, truths, nearest, strict=True)
            ]
            found[f"{name}_{kind}"] = round(sum(rank == 0 for rank in ranks) / count, 4)
        apart = [difference(*pair) for pair in zip(exact, eight, strict=True)]
        found[f"mean_difference_{kind}"] = round(sum(apart) / count, 3)
        found[f"worst_difference_{kind}"] = round(max(apart), 3)
        found[f"points_lost_{kind}"] = round(
            100 * (found[f"top1_{kind}"] - found[f"top1_fp8_{kind}"]), 2
        )
    patcher.verify_full()
    return found


def parts(ours: Ours, paths: list[Path], runs: int) -> Rows:
    """A swap and a restore that keep the copy in step, and each product beside 16 bits'."""
    device, patcher, unet = ours.device, ours.ready.patcher, ours.ready.model.pipe.unet
    weight = unet.conv_in.weight
    by_rows = multiplies_by_rows(weight.device, weight.dtype, shapes(unet))
    found: Rows = {"by_rows": by_rows}
    if by_rows is None:
        raise RuntimeError("this device multiplies no 8 bits")
    recorder = CudaRecorder(weight.device) if device == "cuda" else None
    started = time.perf_counter()
    twin, weights = make_fp8(unet, patcher._targets, recorder, by_rows=by_rows)
    found["made_s"] = round(time.perf_counter() - started, 2)
    found["recorded"] = weights._recording is not None
    found["layers"], found["copies_bytes"] = len(twin.layers), weights.nbytes
    patcher.follow(weights)
    try:
        loras = [(ours.parse(path), SCALE) for path in paths[:2]]
        turn = iter(range(10**6))
        found["switch_ms"] = median_ms(
            device, lambda: patcher.apply([loras[next(turn) % 2]]), 2 * runs, warm=6
        )
        restores = []
        for _ in range(runs):
            patcher.apply([loras[0]])
            restores.append(median_ms(device, patcher.restore, 1, 0))
        found["restore_with_proof_ms"] = sorted(restores)[len(restores) // 2]
        patcher.verify_full()
        found["clean"] = True
    finally:
        patcher.follow(None)
        weights.drop_recording()
    found["products_ms"] = _products(weight, by_rows=by_rows, runs=runs, unet=unet)
    return found


def _products(weight: Tensor, *, by_rows: bool, runs: int, unet: Any) -> dict[str, list[float]]:
    """Shape of a layer → milliseconds of its product in 16 bit, and in 8 with inputs ready."""
    found, device = {}, weight.device
    for height, width in sorted(shapes(unet)):
        x = torch.randn(_ROWS, width, device=device).to(weight.dtype)
        w = torch.randn(height, width, device=device).to(weight.dtype)
        rows, scale = quantised(x)
        small, own = quantised(w)
        own = own.t().contiguous()
        assert rows.dtype is small.dtype is E4M3

        def wide(x: Tensor = x, w: Tensor = w) -> Tensor:
            return torch.nn.functional.linear(x, w)

        def eight(
            rows: Tensor = rows, scale: Tensor = scale, small: Tensor = small, own: Tensor = own
        ) -> Tensor:
            return product(rows, scale, small, own, by_rows=by_rows, dtype=weight.dtype)

        found[f"{height}x{width}"] = [
            median_ms(device.type, call, runs, warm=2) for call in (wide, eight)
        ]
    return found
