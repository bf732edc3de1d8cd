"""Colours for a hole in a picture, from what is around it.

Must not know: why there is a hole.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """`picture` (RGB) with what `mask` (L) covers drawn smoothly from what it does not.

    Push and pull: known colours are averaged into ever coarser pictures until none is unknown, and
    each hole then takes the next coarser one's colours. What the mask leaves keeps its bytes.
    """
    covered = np.asarray(mask) > 0
    if not covered.any():
        return picture
    if covered.all():
        return Image.new("RGB", picture.size, (128, 128, 128))
    pixels = np.asarray(picture)
    colours = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    known = torch.from_numpy(~covered)[None, None].float()
    found = _pulled(colours * known, known)[0].permute(1, 2, 0).round().clamp(0, 255)
    whole = np.where(covered[..., None], found.to(torch.uint8).numpy(), pixels)
    return Image.fromarray(whole)


def _pulled(weighted: Tensor, weight: Tensor) -> Tensor:
    """Colours (1, 3, h, w) everywhere, of colours times their weight and weights from 0 to 1."""
    own = weighted / weight.clamp(min=1e-6)
    if bool((weight > 0).all()) or max(weight.shape[-2:]) == 1:
        return own
    coarse = [
        functional.avg_pool2d(one, 2, ceil_mode=True, count_include_pad=False)
        for one in (weighted, weight)
    ]
    # Half known is known enough: without this, far colours would fade with every level.
    scale = (2 * coarse[1]).clamp(max=1.0) / coarse[1].clamp(min=1e-6)
    below = _pulled(coarse[0] * scale, coarse[1] * scale)
    size = tuple(weight.shape[-2:])
    blurred = functional.interpolate(below, size=size, mode="bilinear", align_corners=False)
    return weight * own + (1 - weight) * blurred
