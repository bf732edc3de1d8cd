"""From latents to pixels and back: scales and precision.

Must not know: requests, prompts, LoRAs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@contextmanager
def upcast_where_needed(vae: Any) -> Iterator[None]:
    """The VAE in float32 for a block's length, if float16 overflows in it."""
    upcast = vae.dtype is torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(torch.float16)


@contextmanager
def tiled_where_large(vae: Any, pixels: int, whole_pixels: int) -> Iterator[None]:
    """The VAE tile by tile for a block's length, if a picture has more than `whole_pixels`.

    By the size alone: tiles change a picture slightly, and free memory must not show in it.
    """
    before = vae.use_tiling
    vae.use_tiling = before or pixels > whole_pixels
    try:
        yield
    finally:
        vae.use_tiling = before


def unscaled(latents: Tensor, vae: Any) -> Tensor:
    """The UNet's latents in the VAE's own scale and dtype."""
    latents = latents.to(vae.dtype)
    mean, std = vae.config.latents_mean, vae.config.latents_std
    if mean is None or std is None:
        unscaled: Tensor = latents / vae.config.scaling_factor
        return unscaled
    means, stds = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
        for values in (mean, std)
    )
    shifted: Tensor = latents * stds / vae.config.scaling_factor + means
    return shifted


def scaled(latents: Tensor, vae: Any) -> Tensor:
    """The VAE's latents in the UNet's scale; the inverse of `unscaled`."""
    mean, std = vae.config.latents_mean, vae.config.latents_std
    if mean is None or std is None:
        found: Tensor = latents * vae.config.scaling_factor
        return found
    means, stds = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
        for values in (mean, std)
    )
    shifted: Tensor = (latents - means) * vae.config.scaling_factor / stds
    return shifted


def from_image(image: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 values in [-1, 1] of an RGB image."""
    array: np.ndarray[Any, np.dtype[np.uint8]] = np.array(image)
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """RGB image of (3, H, W) values in [-1, 1]; by diffusers' steps, each in its dtype, so that the
    bytes are diffusers' in 16 bit, too."""
    values = (pixels * 0.5 + 0.5).clamp(0, 1).float() * 255
    # In a row before it leaves the device: else Pillow gathers byte by byte, ten times as long.
    rows = values.round().to(torch.uint8).permute(1, 2, 0).contiguous()
    array: np.ndarray[Any, np.dtype[np.uint8]] = rows.cpu().numpy()
    return Image.fromarray(array)
