"""SDXL at its real size without its real weights: configurations, random weights, a folder.

    python -m benchmarks.full_size FOLDER      writes such a folder (7 GB) into an empty one

Duty: what benchmarks measure on. Must not know: what is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Not at run time: a start that is measured decides itself when torch is imported.
    from torch import nn

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = REPOSITORY / "demo_model" / "sdxl-demo"
CACHED = "sdxl-full-1"  # another name when what is written changes
FULL_BYTES = 7 * 10**9
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")

# The configurations of stable-diffusion-xl-base-1.0, as far as they are not the classes' defaults.
UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
_TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5,
         "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
TEXT_ENCODER = _TEXT | {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT_ENCODER_2 = _TEXT | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


class Problem(Exception):
    """The benchmark cannot say anything; the text says why."""


def full_size_folder() -> Path:
    """The cached folder; made if it is not there.

    Raises:
        Problem: the disk has no room for it, or it could not be made.
    """
    cache = Path(os.environ.get("SDXL_BENCH_CACHE", "~/.cache/modal-sdxl-lora")).expanduser()
    folder = cache / CACHED
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache).free < 1.2 * FULL_BYTES:
        raise Problem(
            "SDXL_BENCH_CACHE names a disk with too little room: "
            f"{1.2 * FULL_BYTES / 1e9:.0f} GB must be free"
        )
    print("making a folder of SDXL's size, once ...", flush=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as made:
        # A process of its own, so that this one stays small while the others are measured.
        command = [sys.executable, "-m", "benchmarks.full_size", made]
        if subprocess.run(command, check=False).returncode:
            raise Problem("the folder of SDXL's size could not be made")
        # Under its name only once it is whole.
        os.rename(made, folder)
    return folder


def make(folder: Path) -> None:
    """Write the full-size pipeline with random weights in half precision into `folder`."""
    import diffusers
    import torch
    import transformers

    torch.set_num_threads(1)
    text = transformers.CLIPTextConfig
    builders: dict[str, Callable[[], Any]] = {
        "unet": lambda: diffusers.UNet2DConditionModel(**UNET),
        "vae": lambda: diffusers.AutoencoderKL(**VAE),
        "text_encoder": lambda: transformers.CLIPTextModel(text(**TEXT_ENCODER)),
        "text_encoder_2": lambda: transformers.CLIPTextModelWithProjection(text(**TEXT_ENCODER_2)),
    }
    scheduler: Any = diffusers.EulerDiscreteScheduler
    classes = {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    scheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    for seed, name in enumerate(PARTS):
        with torch.device("meta"):
            empty = builders[name]()
        module: Any = random_fill(empty.to(torch.float16).to_empty(device="cpu"), seed)
        # One file for each part, as the published half-precision files are.
        module.save_pretrained(folder / name, max_shard_size="100GB")
        library = "transformers" if name.startswith("text") else "diffusers"
        classes[name] = [library, type(module).__name__]
        del empty, module
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(SMALL / name, folder / name)
        classes[name] = ["transformers", "CLIPTokenizer"]
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index | classes, indent=1) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the pipeline's parts.

    Raises:
        Problem: a part has none.
    """
    found = []
    for part in PARTS:
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            raise Problem(f"the folder has no weights for {part}: {part}/*.safetensors")
        found += files
    return found


def random_fill(module: nn.Module, seed: int) -> nn.Module:
    """Cheap random weights of a trained model's size: one block of numbers, repeated."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(1 << 22, generator=generator) * 0.03).bfloat16()
    for tensor in (*module.parameters(), *module.buffers()):
        flat = tensor.data.view(-1)
        if not flat.is_floating_point():
            torch.arange(flat.numel(), out=flat)
            continue
        offset = int(torch.randint(1 << 20, (1,), generator=generator))
        for start in range(0, flat.numel(), block.numel() - offset):
            part = flat[start : start + block.numel() - offset]
            part.copy_(block[offset : offset + part.numel()])
    return module.eval().requires_grad_(False)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
