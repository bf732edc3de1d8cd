"""IP-Adapters and an image encoder with random weights, as their files have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

IMAGE_SIDE = 32
_SEES, _SUMS = 48, 24
_HIDDEN, _TOKENS = 64, 5
Parts = dict[str, dict[str, Tensor]]


def image_encoder(**sizes: int) -> Any:
    """Much smaller than CLIP's unless `sizes` say otherwise, and built alike."""
    torch.manual_seed(11)
    small = {
        "hidden_size": _SEES, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": IMAGE_SIDE, "patch_size": 8,
        "projection_dim": _SUMS,
    }  # fmt: skip
    config = CLIPVisionConfig(**(small | sizes))
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)


def ip_adapter(unet: Any, seed: int, *, plus: bool, sums: int = _SUMS) -> Parts:
    """An adapter's tensors, as `load_ip_adapter` takes them; `sums`: width of the encoder's
    summary."""
    generator = torch.Generator().manual_seed(seed)

    def of(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    width = unet.config.cross_attention_dim
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    attentions = {}
    for number, name in enumerate(names):
        place = unet.get_submodule(name.removesuffix(".processor"))
        for side in ("k", "v"):
            attentions[f"{2 * number + 1}.to_{side}_ip.weight"] = of(place.inner_dim, width)
    if not plus:
        projecting = {
            "proj.weight": of(4 * width, sums), "proj.bias": of(4 * width),
            "norm.weight": of(width), "norm.bias": of(width),
        }  # fmt: skip
        return {"image_proj": projecting, "ip_adapter": attentions}
    projecting = {
        "latents": of(1, _TOKENS, _HIDDEN),
        "proj_in.weight": of(_HIDDEN, _SEES), "proj_in.bias": of(_HIDDEN),
        "proj_out.weight": of(width, _HIDDEN), "proj_out.bias": of(width),
        "norm_out.weight": of(width), "norm_out.bias": of(width),
    }  # fmt: skip
    for layer in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            projecting[f"layers.{layer}.{norm}.weight"] = of(_HIDDEN)
            projecting[f"layers.{layer}.{norm}.bias"] = of(_HIDDEN)
        for name, shape in (
            ("0.to_q", (_HIDDEN, _HIDDEN)), ("0.to_kv", (2 * _HIDDEN, _HIDDEN)),
            ("0.to_out", (_HIDDEN, _HIDDEN)), ("1.1", (4 * _HIDDEN, _HIDDEN)),
            ("1.3", (_HIDDEN, 4 * _HIDDEN)),
        ):  # fmt: skip
            projecting[f"layers.{layer}.{name}.weight"] = of(*shape)
    return {"image_proj": projecting, "ip_adapter": attentions}


def flat(parts: Parts) -> dict[str, Tensor]:
    """The tensors by the names that a file has."""
    return {f"{part}.{name}": t for part, one in parts.items() for name, t in one.items()}


def adapters_folder(folder: Path, unet: Any) -> Path:
    """As an operator has it: an image encoder, and two adapters `base` and `plus`."""
    folder.mkdir(exist_ok=True)
    image_encoder().save_pretrained(folder / "image_encoder")
    for name in ("base", "plus"):
        parts = ip_adapter(unet, 1, plus=name == "plus")
        save_file(
            {key: tensor.contiguous() for key, tensor in flat(parts).items()},
            folder / f"{name}.safetensors",
        )
    return folder
