"""The denoising loop: from noise to a picture's latents, one step after another.

Duty: the order of a step, the same for every kind of picture, and bit for bit what diffusers'
pipelines compute wherever they can compute it. It leaves nothing behind: no attribute of the
pipeline, scheduler or UNet is set here but the scheduler's own progress.
Must not know: requests, LoRAs, how the UNet is called (eagerly, from a recorded graph, compiled).

One step: scale the latents for the noise level → what is attached (control networks and the like)
→ UNet on [negative, positive] → guidance → rescaled guidance → the sampler's step → the blend.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdxl_worker.drawing.prompts import Conditioning


@dataclass(frozen=True)
class StepInputs:
    """What the UNet is given at one step. B is n pictures, or 2·n with guidance: negative first.

    Attributes:
        index: of the step in this run, from 0.
        sample: (B, C, h, w), scaled for the noise level.
        timestep: no dimensions.
        embeds: (B, 77·windows, width).
        pooled: (B, P).
        time_ids: (B, 6): original size, crop, target size; height first.
        timestep_cond: (n, width) for a UNet that was distilled for its guidance, else None.
    """

    index: int
    sample: Tensor
    timestep: Tensor
    embeds: Tensor
    pooled: Tensor
    time_ids: Tensor
    timestep_cond: Tensor | None


class UNetCall(Protocol):
    """Calls the UNet: gives the prediction (B, C, h, w)."""

    def __call__(self, inputs: StepInputs, attached: Mapping[str, Any]) -> Tensor:
        """`attached` are further arguments of the UNet by name."""


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """One run of the loop: n pictures of one size.

    Attributes:
        predict: calls the UNet.
        scheduler: with its timesteps set; its state belongs to this run.
        latents: (n, C, h, w) at the noise level of step `first`.
        conditioning: of the n pictures, or of one for all.
        size: width and height in px, as the UNet is conditioned on.
        guidance: classifier-free guidance; none at 1 and below.
        rescale: of guidance (Lin et al. 2023, arXiv 2305.08891): 0 leaves it as it is.
        eta: noise that samplers which know it put back.
        generators: of that noise, one for each picture.
        first: which of the scheduler's timesteps is the first; later ones start from a picture.
        last: steps from this one on are not taken; all are if None.
        conditioning_at: the step's own conditioning instead; may return the same object again.
        attach: further arguments of the UNet for a step, such as a control network's residuals.
        blend: what the latents after a step become, such as with the source put back where a mask
            says so; called with the step's index and the latents.
        on_step: told of the step's index and the latents after it; what it raises ends the run.
        timestep_cond: the guidance as an embedding (n, width), for a UNet distilled for it.
    """

    predict: UNetCall
    scheduler: Any
    latents: Tensor
    conditioning: Conditioning
    size: tuple[int, int]
    guidance: float
    rescale: float = 0.0
    eta: float = 0.0
    generators: Sequence[torch.Generator] = ()
    first: int = 0
    last: int | None = None
    conditioning_at: Callable[[int], Conditioning] | None = None
    attach: Callable[[StepInputs], Mapping[str, Any]] | None = None
    blend: Callable[[int, Tensor], Tensor] | None = None
    on_step: Callable[[int, Tensor], None] | None = None
    timestep_cond: Tensor | None = None

    @property
    def timesteps(self) -> Tensor:
        """Of the steps that are taken: as many as the UNet is called."""
        found: Tensor = self.scheduler.timesteps[self.first : self.last]
        return found

    @property
    def guided(self) -> bool:
        """Whether the UNet sees both sides: neither at scale 1 nor where it was distilled."""
        return self.guidance > 1 and self.timestep_cond is None

    @torch.no_grad()
    def run(self) -> Tensor:
        """The latents (n, C, h, w) after the last step, in the UNet's scale."""
        latents = self.latents
        count, guided = len(latents), self.guided
        time_ids = _time_ids(self.size, 2 * count if guided else count, latents)
        extra = self._sampler_options()
        told: Conditioning | None = None
        embeds = pooled = latents
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self.first)
        for index, timestep in enumerate(self.timesteps):
            wanted = self.conditioning_at(index) if self.conditioning_at else self.conditioning
            if wanted is not told:
                told = wanted
                embeds, pooled = _sides(told, count, guided)
            doubled = torch.cat([latents] * 2) if guided else latents
            inputs = StepInputs(
                index=index,
                sample=self.scheduler.scale_model_input(doubled, timestep),
                timestep=timestep,
                embeds=embeds,
                pooled=pooled,
                time_ids=time_ids,
                timestep_cond=self.timestep_cond,
            )
            predicted = self.predict(inputs, self.attach(inputs) if self.attach else {})
            if guided:
                predicted = _guided(predicted, self.guidance, self.rescale)
            # Some samplers compute in float32 and keep it: the next step takes what they give.
            latents = self.scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[
                0
            ]
            if self.blend is not None:
                latents = self.blend(index, latents)
            if self.on_step is not None:
                self.on_step(index, latents)
        return latents

    def _sampler_options(self) -> dict[str, Any]:
        known = inspect.signature(self.scheduler.step).parameters
        options = {"eta": self.eta, "generator": list(self.generators)}
        return {name: value for name, value in options.items() if name in known}


def start_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int], like: Tensor
) -> Tensor:
    """Noise (n, *shape) of spread 1, each picture's the first draw of its own generator.

    Drawn where the generators live, the CPU, so that it does not depend on the device; of the dtype
    and on the device of `like`.
    """
    drawn = [
        torch.randn((1, *shape), generator=one, dtype=like.dtype, device=one.device)
        for one in generators
    ]
    return torch.cat(drawn).to(like.device)


def _sides(conditioning: Conditioning, count: int, guided: bool) -> tuple[Tensor, Tensor]:
    """Embeddings and pooled ones of a whole batch, the negative side first."""
    sides = [(conditioning.prompt, conditioning.pooled)]
    if guided:
        sides.insert(0, (conditioning.negative_prompt, conditioning.negative_pooled))
    embeds, pooled = (
        torch.cat([one.expand(count, *one.shape[1:]) for one in parts])
        for parts in zip(*sides, strict=True)
    )
    return embeds, pooled


def _time_ids(size: tuple[int, int], rows: int, like: Tensor) -> Tensor:
    width, height = size
    # Original size, where the crop begins, target size.
    ids = [height, width, 0, 0, height, width]
    return torch.tensor([ids], dtype=like.dtype, device=like.device).repeat(rows, 1)


def _guided(predicted: Tensor, scale: float, rescale: float) -> Tensor:
    """Away from the negative side, by `scale`; then towards the positive side's spread."""
    negative, positive = predicted.chunk(2)
    guided = negative + scale * (positive - negative)
    if rescale <= 0.0:
        return guided
    over = list(range(1, guided.ndim))
    spread = positive.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
    return rescale * (guided * spread) + (1 - rescale) * guided
