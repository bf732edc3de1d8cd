"""Previews: the map from latents to colours, built in for SDXL and fitted for others."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdxl_worker.drawing.previews import Previews, fit_map, is_sdxl_vae
from testkit.worker import RunningWorker


class LinearVae:
    """A VAE double whose decoding is known: a linear map per latent pixel, eight times as large."""

    def __init__(self, channels: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(1)
        self.map = torch.randn(channels, 3, generator=generator) * 0.2
        self.grey = torch.tensor([0.1, -0.2, 0.3])
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.decoded = 0
        self.config = SimpleNamespace(
            latent_channels=channels,
            scaling_factor=scale,
            force_upcast=False,
            latents_mean=None,
            latents_std=None,
        )

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        self.decoded += 1
        colours = torch.einsum("bchw,cr->brhw", latents, self.map) + self.grey.view(1, 3, 1, 1)
        return (torch.nn.functional.interpolate(colours, scale_factor=8.0),)


def read(preview: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(preview)))


@pytest.mark.parametrize("channels", [4, 8])
def test_the_fit_finds_a_linear_vae_s_own_map(channels: int) -> None:
    vae = LinearVae(channels, 0.5)
    found = fit_map(vae)

    # Latents reach the VAE divided by its scale.
    assert torch.allclose(found[:-1], vae.map / 0.5, atol=0.01)
    assert torch.allclose(found[-1], vae.grey, atol=0.01)


def test_it_is_fitted_once_at_load_and_not_at_all_for_sdxl_s_own_vae() -> None:
    other, own = LinearVae(4, 0.5), LinearVae(4, 0.13025)
    previews = [Previews(vae) for vae in (other, own)]
    for preview in previews:
        for _ in range(3):
            preview.jpeg(torch.zeros(1, 4, 16, 16))

    assert (other.decoded, own.decoded) == (1, 0)
    assert is_sdxl_vae(own)
    assert not is_sdxl_vae(LinearVae(8, 0.13025))


def test_the_preview_shows_the_decoded_picture_s_colours() -> None:
    vae = LinearVae(4, 0.5)
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(2)) * 0.8
    blocks = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
    picture = read(Previews(vae).jpeg(blocks))
    colours = torch.einsum("chw,cr->hwr", latents[0] / 0.5, vae.map) + vae.grey
    expected = ((colours.clamp(-1, 1) + 1) * 127.5).numpy()
    centres = np.asarray(picture.resize((6, 4), Image.Resampling.BOX), dtype=float)

    assert picture.size == (256, 171)
    assert picture.format == "JPEG"
    assert np.abs(centres - expected).mean() < 8


def test_sdxl_s_map_gives_the_published_grey_and_directions() -> None:
    to_rgb = Previews(LinearVae(4, 0.13025)).to_rgb
    grey = (to_rgb[-1] + 1) * 127.5

    assert grey.round().tolist() == [150, 140, 130]
    # The first channel is lightness: the same for all three colours.
    assert set(to_rgb[0].tolist()) == {to_rgb[0, 0].item()}


def test_noisy_latents_are_brought_back_to_a_visible_range() -> None:
    vae = LinearVae(4, 1.0)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    previews = Previews(vae)
    calm, noisy = (np.asarray(read(previews.jpeg(latents * s)), float) for s in (1, 14))

    assert np.abs(calm - noisy).mean() < 3


def test_the_loaded_model_s_map_follows_its_vae(worker: RunningWorker) -> None:
    assert worker.engine._ready is not None
    vae: Any = worker.engine._ready.model.pipe.vae
    to_rgb = worker.engine._ready.drawer._previews.to_rgb

    assert to_rgb.shape == (vae.config.latent_channels + 1, 3)
    assert bool(torch.isfinite(to_rgb).all())
