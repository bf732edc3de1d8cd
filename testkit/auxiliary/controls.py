"""Control networks with random weights, as an operator has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel


def awake(network: Any, seed: int) -> Any:
    """A network whose weights are random where they begin as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            if not tensor.any():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return network.eval().requires_grad_(False)


def controls_folder(folder: Path, unet: Any) -> Path:
    """One ControlNet for `unet`, named `lines`."""
    awake(ControlNetModel.from_unet(unet), 1).save_pretrained(folder / "lines")
    return folder
