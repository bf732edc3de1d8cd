"""A picture enlarged by an upscaler's network, tile by tile, to a size.

Duty: pixels in, pixels out; tiles by the picture's size alone, so that free memory never shows.
Must not know: files, requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdxl_worker.auxiliary.upscaler_networks import Upscaler

# px of the input: what a tile gives, and what it sees beyond on each side.
TILE, MARGIN = 256, 32
# A network of scale 2 is used twice for 4 times, and so on.
_PASSES_MAX = 3


def enlarge(
    image: Image.Image,
    size: tuple[int, int],
    network: Upscaler | None,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> Image.Image:
    """`image` (RGB) at `size`, by `network` as often as it takes, and Lanczos for the rest.

    Args:
        network: on `device`; None is Lanczos alone.
        check: called before each tile; what it raises ends the work.
    """
    passes = 0
    while network is not None and network.scale > 1 and passes < _PASSES_MAX:
        if image.width >= size[0] and image.height >= size[1]:
            break
        image = _once(image, network, device, check)
        passes += 1
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


@torch.no_grad()
def _once(
    image: Image.Image, network: Upscaler, device: torch.device, check: Callable[[], None]
) -> Image.Image:
    scale = network.scale
    source: np.ndarray[Any, np.dtype[np.uint8]] = np.array(image)
    whole = np.empty((image.height * scale, image.width * scale, 3), np.uint8)
    for top in range(0, image.height, TILE):
        for left in range(0, image.width, TILE):
            check()
            bottom, right = min(top + TILE, image.height), min(left + TILE, image.width)
            above, before = max(top - MARGIN, 0), max(left - MARGIN, 0)
            part = source[above : bottom + MARGIN, before : right + MARGIN]
            pixels = torch.from_numpy(part).to(device).permute(2, 0, 1)[None].float() / 255
            larger = _bytes(network(_padded(pixels, network.shrink)))
            y, x = (top - above) * scale, (left - before) * scale
            height, width = (bottom - top) * scale, (right - left) * scale
            whole[top * scale : bottom * scale, left * scale : right * scale] = larger[
                y : y + height, x : x + width
            ]
    return Image.fromarray(whole)


def _padded(pixels: Tensor, multiple: int) -> Tensor:
    """With its last rows and columns repeated up to a multiple."""
    below, beside = (-side % multiple for side in pixels.shape[2:])
    return functional.pad(pixels, (0, beside, 0, below), mode="replicate")


def _bytes(pixels: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    values = (pixels[0].clamp(0, 1) * 255).round().to(torch.uint8)
    found: np.ndarray[Any, np.dtype[np.uint8]] = values.permute(1, 2, 0).cpu().numpy()
    return found
