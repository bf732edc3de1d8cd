"""Reference pictures in the denoising loop: attention to a picture beside that to the words.

Duty: IP-Adapters as attention processors that are plain objects, so that no parameter of the UNet
is added or renamed; attached for one pass and taken off whatever becomes of it; bit for bit what
diffusers draws with the adapters loaded into its UNet.
Must not know: files, requests' limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sdxl_worker.auxiliary.adapters import Adapter
from sdxl_worker.drawing.denoising import Denoising, StepInputs


@dataclass(frozen=True)
class Shown:
    """A picture as an adapter is to show it.

    Attributes:
        seen: (1, …), what the image encoder sees in it.
        unseen: of the same shape, what it sees in nothing: for the side of the negative prompt.
    """

    adapter: Adapter
    seen: Tensor
    unseen: Tensor
    scale: float
    start: float = 0.0
    end: float = 1.0


@torch.no_grad()
def look(image: Image.Image, encoder: Any, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """What `encoder` sees in an RGB picture, as `adapter` takes it; and in nothing."""
    pixels = _processor(encoder.config.image_size)(image, return_tensors="pt").pixel_values
    pixels = pixels.to(encoder.device, encoder.dtype)
    if not adapter.is_plus:
        seen = encoder(pixels).image_embeds
        return seen, torch.zeros_like(seen)
    return (
        encoder(pixels, output_hidden_states=True).hidden_states[-2],
        encoder(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2],
    )


@cache
def _processor(side: int) -> Any:
    # The one that needs no torchvision: the same pixels wherever it is installed.
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size=side, crop_size=side)


class _Beside:
    """A cross-attention to words and pictures. No module: the UNet must not take it for a part."""

    def __init__(self, inner: Any, tokens: Sequence[Tensor]) -> None:
        self._inner, self._tokens = inner, tokens

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        told = (encoder_hidden_states, self._tokens)
        found: Tensor = self._inner(attn, hidden_states, told, attention_mask, temb)
        return found


@dataclass(frozen=True)
class Attached:
    """What is attached to the UNet for one pass.

    Attributes:
        processors: by the name of the cross-attention that they take the place of.
        tokens: one tensor for each picture; the processors look at this very list.
        scales: one for each picture, likewise.
        adapters: whose weights the processors read.
    """

    processors: Mapping[str, object]
    tokens: list[Tensor]
    scales: list[float]
    adapters: tuple[Adapter, ...]

    def told(self) -> dict[str, Any]:
        """All that a step's prediction depends on beside the UNet's arguments and the adapters."""
        return {"tokens": list(self.tokens), "scales": tuple(self.scales)}

    def tell(self, tokens: Sequence[Tensor], scales: Sequence[float]) -> None:
        """Let the processors see these from now on."""
        self.tokens[:], self.scales[:] = tokens, scales


@contextmanager
@torch.no_grad()
def attached(
    denoising: Denoising,
    shown: Sequence[Shown],
    steps: int,
    unet: Any,
    changed: Callable[[Attached | None], None] = lambda _: None,
) -> Iterator[Denoising]:
    """`denoising` to be run while `shown` are attached to the UNet.

    Args:
        steps: that it takes.
        changed: called whenever the UNet's processors are others, with what is attached then.
    """
    if not shown:
        yield denoising
        return
    count = len(denoising.latents)
    tokens = []
    for one in shown:
        sides = (
            [one.unseen] * count + [one.seen] * count if denoising.guided else [one.seen] * count
        )
        tokens.append(one.adapter.projection(torch.cat(sides))[:, None])
    # One list for all: a step's scales are set in one place.
    scales = [one.scale for one in shown]

    def attach(inputs: StepInputs) -> Mapping[str, Any]:
        for number, one in enumerate(shown):
            first, last = inputs.index / steps, (inputs.index + 1) / steps
            scales[number] = one.scale if first >= one.start and last <= one.end else 0.0
        return denoising.attach(inputs) if denoising.attach else {}

    processors = {
        name: _Beside(_summed([one.adapter.pairs[number] for one in shown], scales), tokens)
        for number, name in enumerate(shown[0].adapter.names)
    }
    before = dict(unet.attn_processors)
    try:
        unet.set_attn_processor({**before, **processors})
        changed(Attached(processors, tokens, scales, tuple(one.adapter for one in shown)))
        yield replace(denoising, attach=attach)
    finally:
        unet.set_attn_processor(before)
        changed(None)


def _summed(pairs: Sequence[Any], scales: list[float]) -> Any:
    """One of diffusers' processors with several adapters' weights."""
    first = pairs[0]
    with torch.device("meta"):
        made = type(first)(
            first.hidden_size,
            first.cross_attention_dim,
            num_tokens=[one.num_tokens[0] for one in pairs],
            scale=scales,
        )
    made.to_k_ip = nn.ModuleList([one.to_k_ip[0] for one in pairs])
    made.to_v_ip = nn.ModuleList([one.to_v_ip[0] for one in pairs])
    return made
