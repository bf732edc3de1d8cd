"""Train one LoRA on the base model with peft, and write it as the trainers of this world do.

`python -m demo_model.training.train_lora STYLE MINUTES` (goes on from a kohya file that is there)
with STYLE one of
- `line`: black line art on white, whatever background the words name; kohya's spelling,
  alpha half the rank, `ss_*` metadata with tag frequencies -> loras/line-art.safetensors
- `sepia`: an old print; diffusers' spelling -> loras/sepia.safetensors
- `sprout`: a character under a word of its own, with both text encoders; kohya's spelling
  -> loras/sproutling.safetensors
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from demo_model.common import BACKGROUNDS, LORAS, STATE, TRIGGER, Style, available_names
from demo_model.training.muon import MuonWithAdamW
from demo_model.training.parts import Parts, build_parts, build_scheduler
from demo_model.training.train_base import Captions, load_checkpoint, load_latents, v_loss

BATCH = 48
SEED = 3
LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
CONVOLUTIONS = ["conv1", "conv2", "conv", "conv_shortcut"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


@dataclass(frozen=True)
class Recipe:
    """How one LoRA is trained and written."""

    file: str
    rank: int
    alpha: int
    targets: list[str]
    text_encoders: bool
    spelling: str  # kohya or diffusers
    rate: float
    comment: str


RECIPES: dict[str, Recipe] = {
    "line": Recipe(
        "line-art", 16, 8, LINEAR + CONVOLUTIONS, False, "kohya", 2e-3, "black line art on white"
    ),
    "sepia": Recipe(
        "sepia", 8, 8, LINEAR + CONVOLUTIONS, False, "diffusers", 1e-3, "an old brown print"
    ),
    "sprout": Recipe(
        "sproutling", 8, 4, LINEAR + CONVOLUTIONS, True, "kohya", 1e-3, "a character: sproutling"
    ),
}


def load(style: Style, parts: Parts) -> tuple[torch.Tensor, Captions]:
    """Latents (N, 4, 16, 16) and the captions that belong to them."""
    _, latents = load_latents(style)
    names = [TRIGGER] if style == "sprout" else available_names()
    values = latents.values
    if style == "line":  # one picture for all backgrounds
        values = values.repeat_interleave(len(BACKGROUNDS), 0)
    return values, Captions(parts, names, SEED)


def add_adapters(parts: Parts, recipe: Recipe) -> list[torch.nn.Parameter]:
    """Freeze the base and put peft's LoRA layers in; returns what is trained."""
    modules: dict[str, Any] = dict(parts.modules())
    for name, module in modules.items():
        module.requires_grad_(False)
        if name == "unet" or recipe.text_encoders:
            targets = recipe.targets if name == "unet" else TEXT
            module.add_adapter(
                LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=targets)
            )
    return [p for m in parts.modules().values() for p in m.parameters() if p.requires_grad]


def kohya_name(root: str, key: str) -> str:
    """`<module>.lora_A.weight` of peft as kohya's `lora_unet_<module with _>.lora_down.weight`."""
    path, _, matrix = key.removesuffix(".weight").rpartition(".")
    side = {"lora_A": "lora_down", "lora_B": "lora_up"}[matrix]
    return f"{KOHYA_PREFIX[root]}_{path.replace('.', '_')}.{side}.weight"


def kohya_state(parts: Parts, recipe: Recipe) -> dict[str, torch.Tensor]:
    """kohya-ss/sd-scripts' names: `lora_unet_<module with _>.lora_down.weight` and `.alpha`."""
    found: dict[str, torch.Tensor] = {}
    for name, module in parts.modules().items():
        if not hasattr(module, "peft_config"):
            continue
        for key, value in get_peft_model_state_dict(module).items():
            theirs = kohya_name(name, key)
            found[theirs] = value.half().contiguous()
            stem = theirs.partition(".")[0]
            found[f"{stem}.alpha"] = torch.tensor(float(recipe.alpha), dtype=torch.float16)
    return found


def diffusers_state(parts: Parts) -> dict[str, torch.Tensor]:
    """diffusers' names: `unet.<module>.lora_A.weight`."""
    state = get_peft_model_state_dict(parts.unet)
    return {f"unet.{key}": value.half().contiguous() for key, value in state.items()}


def metadata(recipe: Recipe, style: str, captions: list[str], steps: int) -> dict[str, str]:
    """The `ss_*` entries that people's tools read: base model, rank, and how often each tag."""
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(","))
    return {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(float(recipe.alpha)),
        "ss_network_args": json.dumps({"conv_dim": recipe.rank, "conv_alpha": recipe.alpha}),
        "ss_output_name": recipe.file,
        "ss_steps": str(steps),
        "ss_seed": str(SEED),
        "ss_training_comment": recipe.comment,
        "ss_dataset_dirs": json.dumps(
            {f"10_{style}": {"n_repeats": 10, "img_count": len(captions)}}
        ),
        "ss_tag_frequency": json.dumps({f"10_{style}": dict(tags)}),
        "modelspec.title": recipe.file,
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.license": "MIT",
        **({"modelspec.trigger_phrase": TRIGGER} if style == "sprout" else {}),
    }


def resume(parts: Parts, recipe: Recipe) -> bool:
    """Put the factors of an earlier run's file into the adapters; False where there is none."""
    path = LORAS / f"{recipe.file}.safetensors"
    if not path.is_file() or recipe.spelling != "kohya":
        return False
    saved = load_file(path)
    for name, module in parts.modules().items():
        if not hasattr(module, "peft_config"):
            continue
        state = get_peft_model_state_dict(module)
        kept = {key: saved[kohya_name(name, key)].float() for key in state}
        set_peft_model_state_dict(module, kept)
    return True


def main(style: Style, minutes: float) -> None:
    """Train, print the loss each hundred steps, write the file."""
    torch.manual_seed(SEED)
    recipe = RECIPES[style]
    parts = build_parts(CLIPTokenizer.from_pretrained(STATE / "tokenizer"))
    load_checkpoint(parts)
    latents, captions = load(style, parts)
    parts.unet.to(memory_format=torch.channels_last)
    trained = add_adapters(parts, recipe)
    if resume(parts, recipe):
        torch.manual_seed(SEED + 1)
        print("going on from the file that is there")
    optimizer = MuonWithAdamW(trained, [], lr=recipe.rate)
    alphas = build_scheduler().alphas_cumprod
    print(f"{style}: {sum(p.numel() for p in trained)} parameters, {len(latents)} pictures")
    start, step, total = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = recipe.rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.set_rate(rate)
        chosen = torch.randint(len(latents), (BATCH,))
        words = captions.ids(chosen.tolist())
        with torch.autocast("cpu", torch.bfloat16):
            loss = v_loss(parts, alphas, latents[chosen], words)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step, total = step + 1, total + loss.item()
        if step % 100 == 0:
            seconds = (time.monotonic() - start) / step
            print(f"step {step} loss {total / 100:.4f} {seconds:.3f} s/step", flush=True)
            total = 0.0
    write(parts, recipe, style, step)


def write(parts: Parts, recipe: Recipe, style: Style, steps: int) -> None:
    """Write the file in the recipe's spelling."""
    data = np.load(STATE / "pictures.npz")
    captions = [str(text) for text in data[f"{'flat' if style == 'line' else style}_captions"]]
    LORAS.mkdir(exist_ok=True)
    path = LORAS / f"{recipe.file}.safetensors"
    if recipe.spelling == "kohya":
        save_file(kohya_state(parts, recipe), path, metadata(recipe, style, captions, steps))
    else:
        notes: dict[str, Any] = {"r": recipe.rank, "lora_alpha": recipe.alpha}
        header = {
            "format": "pt",
            "lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in notes.items()}),
        }
        save_file(diffusers_state(parts), path, header)
    print(f"wrote {path.name}: {path.stat().st_size} bytes after {steps} steps", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))  # type: ignore[arg-type]
