"""Where denoising begins: in noise, or in a source's latents with noise on them.

Duty: the first latents of a run, at which step it begins, and what is put back after each step.
Bit for bit diffusers' where it has the same: its image-to-image, and its inpainting with a mask of
whole latent pixels.
Must not know: requests, pictures' files, how the UNet is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdxl_contract.pictures import Fill
from sdxl_worker.drawing.denoising import start_noise

Blend = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Beginning:
    """Latents (n, C, h, w) at the noise level of the scheduler's step `first`."""

    latents: Tensor
    first: int = 0
    blend: Blend | None = None


@dataclass(frozen=True)
class Ground:
    """A source in the UNet's scale.

    Attributes:
        latents: (1, C, h, w).
        mask: (1, 1, h, w) from 0, which stays, to 1, which is drawn; None: all is drawn.
        fill: what stands under the mask in the beginning, if that is not in `latents`.
        soft: whether the mask says when each place is let go, instead of how it is mixed.
    """

    latents: Tensor
    mask: Tensor | None = None
    fill: Fill = Fill.ORIGINAL
    soft: bool = False


def from_noise(
    generators: Sequence[torch.Generator],
    shape: tuple[int, int, int],
    like: Tensor,
    scheduler: Any,
) -> Beginning:
    """Nothing but noise."""
    return Beginning(start_noise(generators, shape, like) * scheduler.init_noise_sigma)


def from_ground(
    ground: Ground,
    generators: Sequence[torch.Generator],
    scheduler: Any,
    steps: int,
    drawn_steps: int,
    *,
    is_whole: bool,
) -> Beginning:
    """The last `drawn_steps` of `steps`, on the noised ground.

    Args:
        scheduler: with its timesteps set.
        is_whole: the strength is 1: under a mask nothing shines through the noise.
    """
    first = max(steps - drawn_steps, 0) * int(scheduler.order)
    if hasattr(scheduler, "set_begin_index"):
        # Before noise is added, which asks where the run begins.
        scheduler.set_begin_index(first)
    kept = ground.latents
    # A picture's noise is its generator's first draw, as it is without a ground.
    noise = start_noise(generators, tuple(kept.shape[1:]), kept)  # type: ignore[arg-type]
    kept = kept.expand(len(generators), *kept.shape[1:])
    timesteps = scheduler.timesteps[first:]
    if ground.mask is not None and is_whole:
        latents = noise * scheduler.init_noise_sigma
    else:
        under = _filled(kept, ground, generators)
        latents = scheduler.add_noise(under, noise, timesteps[:1].repeat(len(generators)))
    if ground.mask is None:
        return Beginning(latents, first)
    return Beginning(latents, first, _put_back(ground, kept, noise, scheduler, timesteps))


def _filled(kept: Tensor, ground: Ground, generators: Sequence[torch.Generator]) -> Tensor:
    if ground.mask is None or ground.fill in (Fill.ORIGINAL, Fill.SURROUNDINGS):
        return kept
    held = kept * (1 - ground.mask)
    if ground.fill is Fill.NOTHING:
        return held
    return held + ground.mask * start_noise(generators, tuple(kept.shape[1:]), kept)  # type: ignore[arg-type]


def _put_back(
    ground: Ground, source: Tensor, noise: Tensor, scheduler: Any, timesteps: Tensor
) -> Blend:
    """After each step the source is put back where the mask says so, as noisy as the rest is."""
    mask, count = ground.mask, len(timesteps)
    assert mask is not None

    def blend(index: int, latents: Tensor) -> Tensor:
        kept = source
        if index + 1 < count:
            kept = scheduler.add_noise(source, noise, timesteps[index + 1 : index + 2])
        if not ground.soft:
            return (1 - mask) * kept + mask * latents
        # A place is let go once the threshold, which falls from step to step, is below its grey.
        return torch.where(mask > 1 - (index + 1) / count, latents, kept)

    return blend
