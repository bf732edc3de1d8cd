"""A step and a decoding by our own kernels beside torch's: milliseconds, and whether bits differ.

Must not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.speeds import Ours, Rows, median_ms
from sdxl_worker.graphs.cuda import CudaRecorder
from sdxl_worker.kernels.modules import Quick, QuickGroupNorm

_WINDOW = 77


def quick_of(ours: Ours) -> Quick | None:
    """What the UNet's layers call; None where they are torch's own."""
    modules = ours.ready.model.pipe.unet.modules()
    return next((one.quick for one in modules if isinstance(one, QuickGroupNorm)), None)


@contextmanager
def _off(quick: Quick) -> Iterator[None]:
    """torch's own operations."""
    before, quick.off = quick.off, dict.fromkeys(("group_norm", "geglu"), "compared")
    try:
        yield
    finally:
        quick.off = before


def rows(ours: Ours, runs: int) -> Rows:
    """With our kernels and without, in turn; the step as a recording."""
    quick = quick_of(ours)
    if quick is None:
        return {"used": [], "because": "no GPU that computes in BF16"}
    pipe, device = ours.ready.model.pipe, ours.ready.model.device
    recorder = CudaRecorder(device)
    side = ours.side // pipe.vae_scale_factor
    noise = torch.randn(2, pipe.unet.config.in_channels, side, side, device=device).bfloat16()
    arguments = _arguments(pipe.unet, noise, ours.side)
    found: Rows = {"used": [n for n in ("group_norm", "geglu") if n not in quick.off]}

    def step() -> Tensor:
        predicted: Tensor = pipe.unet(noise, **arguments)[0]
        return predicted

    def decode() -> Tensor:
        pixels: Tensor = pipe.vae.decode(noise[:1], return_dict=False)[0]
        return pixels

    def measured(name: str) -> tuple[Tensor, Tensor]:
        recording = recorder.record(step, f"compared{name}")
        found[f"step_ms{name}"] = median_ms("cuda", recording.replay, 4 * runs)
        found[f"vae_ms{name}"] = median_ms("cuda", decode, 2 * runs)
        pictures = recording.replay().clone(), decode()
        recording.discard()
        return pictures

    with torch.no_grad():
        by_ours = measured("")
        with _off(quick):
            by_torch = measured("_without")
    found["same_bits"] = all(map(torch.equal, by_ours, by_torch))
    return found


def _arguments(unet: Any, noise: Tensor, side: int) -> dict[str, Any]:
    """Of a step with guidance, whatever the picture."""
    device, config = noise.device, unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    ids = torch.tensor([[side, side, 0, 0, side, side]] * 2, device=device).bfloat16()
    return {
        "timestep": torch.tensor(500.0, device=device),
        "encoder_hidden_states": torch.randn(
            2, _WINDOW, config.cross_attention_dim, device=device
        ).bfloat16(),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, pooled, device=device).bfloat16(),
            "time_ids": ids,
        },
        "return_dict": False,
    }
