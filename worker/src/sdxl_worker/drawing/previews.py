"""Small pictures of unfinished latents, by a linear map from latent to colour.

Duty: latents → JPEG in a millisecond, where decoding would take as long as steps do.
Must not know: requests, LoRAs.

SDXL's own VAE has the map built in; for another it is fitted once, at load, by least squares on
what that VAE decodes.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdxl_worker.drawing.latents import to_image, unscaled, upcast_where_needed

_SIDE = 256
_QUALITY = 70
# SDXL's VAE, by what only it has: 4 channels and this scaling factor.
_SDXL_CHANNELS, _SDXL_SCALE = 4, 0.13025
# Rows: what one unit of each of its channels adds to red, green and blue in [-1, 1]; the last row
# is grey's. Public measurements of that VAE, there in steps of 1/255.
_SDXL_TO_RGB = (
    (60, 60, 60),
    (-60, -5, 10),
    (25, 15, -5),
    (-70, -50, -35),
)
_SDXL_GREY = (150, 140, 130)
# Added when the map is fitted, so that it is always solvable.
_RIDGE = 1e-3


class Previews:
    """The previews of one VAE.

    Attributes:
        to_rgb: (C + 1, 3); latents with a 1 appended times this are RGB in [-1, 1].
    """

    def __init__(self, vae: Any) -> None:
        self.to_rgb = _sdxl_map() if is_sdxl_vae(vae) else fit_map(vae)

    def jpeg(self, latents: Tensor) -> str:
        """Base64 of a JPEG of (1, C, h, w) `latents`, its longer side 256 px."""
        values = latents[0].float().cpu().permute(1, 2, 0)
        # Some samplers' unfinished latents are as large as their noise: back to unit spread.
        values = values / values.std().clamp(min=1.0)
        image = to_image((values @ self.to_rgb[:-1] + self.to_rgb[-1]).permute(2, 0, 1))
        scale = _SIDE / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=_QUALITY)
        return base64.b64encode(buffer.getvalue()).decode()


def is_sdxl_vae(vae: Any) -> bool:
    """Whether the built-in map is this VAE's."""
    config = vae.config
    scale = float(config.scaling_factor)
    return config.latent_channels == _SDXL_CHANNELS and abs(scale - _SDXL_SCALE) < 1e-6


@torch.no_grad()
def fit_map(vae: Any) -> Tensor:
    """(C + 1, 3): least squares from latents to the mean colours of what `vae` decodes."""
    channels = int(vae.config.latent_channels)
    generator = torch.Generator("cpu").manual_seed(0)
    coarse = torch.randn(4, channels, 4, 4, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="nearest")
    with upcast_where_needed(vae):
        pixels = vae.decode(unscaled(latents.to(vae.device), vae), return_dict=False)[0]
    colours = torch.nn.functional.adaptive_avg_pool2d(pixels.float().cpu(), (16, 16))
    rows = latents.permute(0, 2, 3, 1).reshape(-1, channels)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    wanted = colours.permute(0, 2, 3, 1).reshape(-1, 3)
    gram = rows.T @ rows + _RIDGE * torch.eye(channels + 1)
    solution: Tensor = torch.linalg.solve(gram, rows.T @ wanted)
    return solution


def _sdxl_map() -> Tensor:
    grey = torch.tensor([_SDXL_GREY]) / 127.5 - 1
    return torch.cat([torch.tensor(_SDXL_TO_RGB) / 127.5, grey])
