"""Writes an SDXL pipeline as one checkpoint file in the original layout, as most are shared.

The names are those that SDXL's own code gives its modules; the reverse of what a loader does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _unet_name(name: str, unet: Any) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    layers = unet.config.layers_per_block
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return f"middle_block.{place}.{_inner(parts[1], '.'.join(parts[3:]))}"
    block, kind, layer, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.{rest.replace('conv', 'op', 1)}"
        number = (layers + 1) * block + layer + 1
        return f"input_blocks.{number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    if kind == "upsamplers":
        last = (layers + 1) * block + layers
        place = 1 + int(hasattr(unet.up_blocks[block], "attentions"))
        return f"output_blocks.{last}.{place}.{rest}"
    number = (layers + 1) * block + layer
    return f"output_blocks.{number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    for ours, theirs in _RESNET:
        if rest.startswith(f"{ours}."):
            return rest.replace(ours, theirs, 1)
    raise KeyError(rest)


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if ".mid.attn_1." in name:
        for ours, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    up = (r"up_blocks\.(\d)\.resnets", r"up_blocks\.(\d)\.upsamplers\.0")
    name = re.sub(up[0], lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    return re.sub(up[1], lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)


def _second_text_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In OpenCLIP's names: queries, keys and values in one matrix."""
    found: dict[str, Tensor] = {}
    renames = (
        (r"^text_model\.encoder\.layers", "transformer.resblocks"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"self_attn\.out_proj", "attn.out_proj"),
        (r"^text_model\.final_layer_norm", "ln_final"),
        (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
        (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    )
    for name, tensor in state.items():
        if "q_proj" in name:
            stem, kind = name.split(".self_attn.q_proj.")
            whole = torch.cat([state[f"{stem}.self_attn.{p}_proj.{kind}"] for p in "qkv"])
            block = re.sub(renames[0][0], renames[0][1], stem)
            found[f"{block}.attn.in_proj_{kind}"] = whole
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif "k_proj" not in name and "v_proj" not in name and "position_ids" not in name:
            for pattern, replacement in renames:
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
    return found


def _with_prefix(state: dict[str, Tensor], prefix: str = "text_model.") -> dict[str, Tensor]:
    """CLIP's names as checkpoints spell them, whatever this version of transformers does."""
    return {
        name if name.startswith((prefix, "text_projection")) else f"{prefix}{name}": tensor
        for name, tensor in state.items()
    }


def write_single_file(pipe: Any, path: Path) -> None:
    """`pipe` as one .safetensors file in SDXL's original layout."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in pipe.unet.state_dict().items():
        tensors[f"model.diffusion_model.{_unet_name(name, pipe.unet)}"] = tensor
    blocks = len(pipe.vae.config.block_out_channels)
    for name, tensor in pipe.vae.state_dict().items():
        ours = _vae_name(name, blocks)
        matrix = ".mid.attn_1." in ours and tensor.ndim == 2
        tensors[f"first_stage_model.{ours}"] = tensor[:, :, None, None] if matrix else tensor
    for name, tensor in _with_prefix(pipe.text_encoder.state_dict()).items():
        tensors[f"conditioner.embedders.0.transformer.{name}"] = tensor
    second = _second_text_encoder(_with_prefix(pipe.text_encoder_2.state_dict()))
    for name, tensor in second.items():
        tensors[f"conditioner.embedders.1.model.{name}"] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
