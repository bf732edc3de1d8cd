"""Control networks with random weights, as an operator has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter


def awake(network: Any, seed: int) -> Any:
    """A network whose weights are random where they begin as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            if not tensor.any():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return network.eval().requires_grad_(False)


def union_for(unet: Any, seed: int) -> Any:
    """A ControlNet-Union of six types."""
    shape = {
        name: unet.config[name]
        for name in (
            "in_channels", "down_block_types", "block_out_channels", "layers_per_block",
            "transformer_layers_per_block", "attention_head_dim", "use_linear_projection",
            "cross_attention_dim", "addition_embed_type", "addition_time_embed_dim",
            "projection_class_embeddings_input_dim", "norm_num_groups",
        )
    }  # fmt: skip
    kind: Any = ControlNetUnionModel
    width = unet.config.block_out_channels[0]
    return awake(
        kind(
            **shape, num_control_type=6, num_trans_channel=width, num_trans_head=4,
            num_proj_channel=width,
        ),
        seed,
    )  # fmt: skip


def adapter_for(unet: Any, seed: int, in_channels: int = 3) -> Any:
    """A T2I-Adapter."""
    kind: Any = T2IAdapter
    blocks = unet.config.block_out_channels
    torch.manual_seed(seed)
    network = kind(
        in_channels=in_channels,
        channels=[*blocks, blocks[-1]],
        num_res_blocks=2,
        downscale_factor=16,
        adapter_type="full_adapter_xl",
    )
    return awake(network, seed)


def controls_folder(folder: Path, unet: Any) -> Path:
    """One of each kind for `unet`: `lines`, `union` and `sketch`."""
    awake(ControlNetModel.from_unet(unet), 1).save_pretrained(folder / "lines")
    union_for(unet, 2).save_pretrained(folder / "union")
    adapter_for(unet, 3).save_pretrained(folder / "sketch")
    return folder
