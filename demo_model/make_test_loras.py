"""Make LoRA files of the other algorithms for a model folder: LoHa, LoKr, DoRA and LoCon.

`python make_test_loras.py OUTPUT [--model FOLDER] [--seed N]` reads the shapes (and, for DoRA, the
norms) of the UNet's weights in FOLDER and writes four files in LyCORIS' and kohya's names. Their
factors are random, trained on nothing: for tests of what loads them. The algorithms: LoHa
(Hyeon-Woo et al. 2022), LoKr (Yeh et al. 2024), DoRA (Liu et al. 2024), LoCon (LoRA on convolutions
too).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from demo_model.common import MODEL

RANK, ALPHA = 4, 2.0
STRENGTH = 0.05  # root mean square of the change, over that of the weights
Factors = dict[str, torch.Tensor]
Maker = Callable[[torch.Tensor, torch.Generator], Factors]


def _random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def loha(weight: torch.Tensor, generator: torch.Generator) -> Factors:
    """(w1_a w1_b) * (w2_a w2_b), elementwise. weight: (out, in)."""
    out, width = weight.shape
    return {
        "hada_w1_a": _random(generator, out, RANK),
        "hada_w1_b": _random(generator, RANK, width),
        "hada_w2_a": _random(generator, out, RANK),
        "hada_w2_b": _random(generator, RANK, width),
    }


def lokr(weight: torch.Tensor, generator: torch.Generator) -> Factors:
    """Kronecker product of w1 and w2_a w2_b. weight: (out, in); w1 is at most 8 x 8."""
    out, width = weight.shape
    small = [max(d for d in (8, 4, 2, 1) if size % d == 0) for size in (out, width)]
    return {
        "lokr_w1": _random(generator, *small),
        "lokr_w2_a": _random(generator, out // small[0], RANK),
        "lokr_w2_b": _random(generator, RANK, width // small[1]),
    }


def lora(weight: torch.Tensor, generator: torch.Generator) -> Factors:
    """up down. weight: (out, in) or (out, in, h, w), where down has the kernel."""
    out, width, *kernel = weight.shape
    return {
        "lora_down.weight": _random(generator, RANK, width, *kernel),
        "lora_up.weight": _random(generator, out, RANK, *(1 for _ in kernel)),
    }


def dora(weight: torch.Tensor, generator: torch.Generator) -> Factors:
    """As `lora`, and a length for each output: the weight's own, a little changed."""
    lengths = weight.norm(dim=1, keepdim=True)
    change = 1 + 0.1 * _random(generator, *lengths.shape)
    return lora(weight, generator) | {"dora_scale": lengths * change}


KINDS: dict[str, tuple[Maker, bool]] = {  # maker, whether convolutions too
    "loha": (loha, False),
    "lokr": (lokr, False),
    "dora": (dora, False),
    "locon": (lora, True),
}


def _scaled(factors: Factors, weight: torch.Tensor) -> Factors:
    """The factors, so small that the change is about `STRENGTH` of the weights."""
    parts = [name for name in factors if name != "dora_scale"]
    # Products of unit normals: each sum over the rank adds a factor of its square root.
    sums = 2 if "hada_w1_a" in factors else 1
    unit = math.sqrt(RANK) ** sums * ALPHA / RANK
    wanted = STRENGTH * weight.std().item() / unit
    share = wanted ** (1 / len(parts))
    return {name: value * share if name in parts else value for name, value in factors.items()}


def make(kind: str, weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The tensors of one file. weights: the UNet's, by diffusers' names."""
    maker, convolutions = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for name, weight in sorted(weights.items()):
        linear = weight.ndim == 2 and "attentions" in name
        if not name.endswith(".weight") or not (linear or (convolutions and weight.ndim == 4)):
            continue
        stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        factors = _scaled(maker(weight.float(), generator), weight.float())
        for part, value in factors.items():
            found[f"{stem}.{part}"] = value.half().contiguous()
        found[f"{stem}.alpha"] = torch.tensor(ALPHA, dtype=torch.float16)
    return found


def main() -> None:
    """Write the files and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    files = sorted((options.model / "unet").glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        parser.error(
            f"--model {options.model.name}: has no unet/diffusion_pytorch_model.safetensors"
        )
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    options.output.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(KINDS):
        path = options.output / f"{kind}.safetensors"
        notes = {"ss_base_model_version": "sdxl_base_v1-0", "ss_network_dim": str(RANK)}
        save_file(make(kind, weights, options.seed + number), path, notes)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
