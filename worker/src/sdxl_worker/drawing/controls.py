"""Control networks in the denoising loop: what they give the UNet at each step.

Duty: ControlNet, ControlNet-Union and T2I-Adapter as further arguments of the UNet, several at
once, bit for bit what diffusers' pipelines pass it. Nothing is attached to the UNet.
Must not know: files, requests' limits, how the UNet is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdxl_contract.limits import ControlKind
from sdxl_worker.drawing.denoising import StepInputs


@dataclass(frozen=True)
class Held:
    """One network with its picture, ready for a pass.

    Attributes:
        network: a diffusers ControlNetModel, ControlNetUnionModel or T2IAdapter.
        pixels: (1, 3, H, W) in [0, 1], of the pass's size, on the network's device; see `as_map`
            for a T2I-Adapter's.
        mode: which of its types, for one that knows several.
    """

    kind: ControlKind
    network: Any
    pixels: Tensor
    scale: float
    start: float
    end: float
    mode: int = 0


def as_pixels(image: Image.Image, size: tuple[int, int], network: Any) -> Tensor:
    """An RGB picture as a network takes it, stretched to `size`."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    array: np.ndarray[Any, np.dtype[np.uint8]] = np.array(image)
    pixels = (torch.from_numpy(array).float() / 255).permute(2, 0, 1)[None]
    return pixels.to(network.device, network.dtype)


def as_map(image: Image.Image, size: tuple[int, int], network: Any) -> Tensor:
    """A picture as a T2I-Adapter takes it: grey where it knows one channel, its right and lower
    edge repeated up to a multiple of what the adapter shrinks by, as the UNet's levels round up.

    Its bytes lie pixel by pixel: convolutions over another order round otherwise than diffusers'.
    """
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    array = np.array(image.convert("L" if network.config.in_channels == 1 else "RGB"))
    lines = array.reshape(1, *array.shape[:2], -1).astype(np.float32) / 255.0
    pixels = torch.from_numpy(lines).permute(0, 3, 1, 2)
    multiple = network.config.downscale_factor
    right, below = (-side % multiple for side in size)
    if right or below:
        pixels = torch.nn.functional.pad(pixels, (0, right, 0, below), mode="replicate")
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    return pixels.to(network.device, network.dtype)


# What a network gives the UNet's way down and its middle.
Residuals = tuple[Sequence[Tensor], Tensor]
# Calls a network with arguments by name.
ControlCall = Callable[[Any, dict[str, Any]], Residuals]


def called(network: Any, arguments: dict[str, Any]) -> Residuals:
    """What a ControlNet or ControlNet-Union gives; a `ControlCall`."""
    sides, centre = network(**arguments, guess_mode=False, return_dict=False)
    return sides, centre


class Attachments:
    """What a pass of `count` steps is held by; a denoising's `attach`.

    Args:
        call: how networks are called at each step.
    """

    def __init__(self, held: Sequence[Held], count: int, call: ControlCall = called) -> None:
        self._held, self._count, self._call = held, count, call
        self._features: dict[int, list[Tensor]] = {}  # of T2I-Adapters, the same at each step

    @torch.no_grad()
    def __call__(self, inputs: StepInputs) -> Mapping[str, Any]:
        """Further arguments of the UNet for one step."""
        down: list[Tensor] = []
        middle: Tensor | None = None
        within: list[Tensor] = []
        for number, one in enumerate(self._held):
            if inputs.index / self._count < one.start or (inputs.index + 1) / self._count > one.end:
                continue
            if one.kind is ControlKind.T2I_ADAPTER:
                if number not in self._features:
                    self._features[number] = [one.scale * each for each in one.network(one.pixels)]
                within = _summed(within, self._features[number])
                continue
            sides, centre = self._call(one.network, _arguments(one, inputs))
            down = _summed(down, [each * one.scale for each in sides])
            centre = centre * one.scale
            middle = centre if middle is None else middle + centre
        found: dict[str, Any] = {}
        if middle is not None:
            found["down_block_additional_residuals"] = tuple(down)
            found["mid_block_additional_residual"] = middle
        if within:
            # The UNet takes them out of the list one by one.
            found["down_intrablock_additional_residuals"] = [
                torch.cat([each] * len(inputs.sample)) for each in within
            ]
        return found


def _summed(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(one, other, strict=True)] if one else list(other)


def _arguments(one: Held, inputs: StepInputs) -> dict[str, Any]:
    """Of a network at one step. Not its scale: the same number would be multiplied with in there,
    and each one be another call.
    """
    rows = len(inputs.sample)
    pixels = torch.cat([one.pixels] * rows)
    found: dict[str, Any] = {
        "sample": inputs.sample,
        # As for the UNet: of one kind, and where the rest is.
        "timestep": inputs.timestep.to(inputs.sample.device, torch.float32),
        "encoder_hidden_states": inputs.embeds,
        "added_cond_kwargs": {"text_embeds": inputs.pooled, "time_ids": inputs.time_ids},
        "controlnet_cond": pixels,
    }
    if one.kind is ControlKind.CONTROLNET_UNION:
        types = pixels.new_zeros(rows, one.network.config.num_control_type)
        types[:, one.mode] = 1
        found |= {
            "controlnet_cond": [pixels], "control_type": types, "control_type_idx": [one.mode],
        }  # fmt: skip
    return found
