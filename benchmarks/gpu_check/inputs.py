"""What is checked on: a model of SDXL's size with random weights, and LoRAs of five algorithms.

Must not know: what is measured.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.full_size import (
    FULL_BYTES,
    PARTS,
    SCHEDULER,
    SMALL,
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    UNET,
    VAE,
)
from sdxl_worker.lora import lora_targets
from testkit.loras.making import MAKERS, Randomness, kohya_stem, save

PROMPT = "a red apple on a wooden table, soft light"
# Eight files of five algorithms; the first two are the rank-32 ones that are timed.
KINDS = ("lora", "lora", "lora", "loha", "lokr", "dora-in", "full", "loha")
# Weights this large keep activations finite through all of a random model's layers.
_SPREAD = 0.6
_KINDS = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
# Of each factor of a LoRA that changes all of attention: about half of the weights' own size.
_WHOLE = 0.45
# Of the place for model and LoRAs.
_ROOM_BYTES = FULL_BYTES + 3 * 10**9


def write_inputs(folder: Path, model: Path, device: str, rank: int) -> LoraFiles:
    """The model, unless it is there, and LoRAs for it in `folder`, side by side."""
    if (model / "model_index.json").exists():
        return write_loras(folder, module_shapes(model), rank)
    with ThreadPoolExecutor(1) as pool:
        # While they are made the GPU draws, and the model goes where it is kept.
        loras = pool.submit(write_loras, folder, module_shapes(None), rank)
        model.mkdir(parents=True, exist_ok=True)
        write_model(model, device)
        return loras.result()


def write_model(folder: Path, device: str) -> None:
    """The full-size pipeline in half precision, drawn on `device`, into `folder`. What says that
    it is one comes last."""
    scheduler: Any = diffusers.EulerDiscreteScheduler
    classes = {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    scheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    torch.manual_seed(0)
    for name in PARTS:
        module: Any = _empty(name).to(torch.float16).to_empty(device=device)
        with torch.no_grad():
            for key, tensor in (*module.named_parameters(), *module.named_buffers()):
                _fill(key, tensor)
        library = "transformers" if name.startswith("text") else "diffusers"
        if library == "transformers":
            module.config.architectures = [type(module).__name__]
            module.config.save_pretrained(folder / name)
        else:
            module.save_config(folder / name)
        stem = "model" if library == "transformers" else "diffusion_pytorch_model"
        _write_weights(module, folder / name / f"{stem}.fp16.safetensors")
        classes[name] = [library, type(module).__name__]
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(SMALL / name, folder / name, dirs_exist_ok=True)
        classes[name] = ["transformers", "CLIPTokenizer"]
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index | classes))


def _empty(name: str) -> torch.nn.Module:
    """A part of that pipeline without weights."""
    stated = transformers.CLIPTextConfig
    builders: dict[str, Callable[[], torch.nn.Module]] = {
        "unet": lambda: diffusers.UNet2DConditionModel(**UNET),
        "vae": lambda: diffusers.AutoencoderKL(**VAE),
        "text_encoder": lambda: transformers.CLIPTextModel(stated(**TEXT_ENCODER)),
        "text_encoder_2": lambda: transformers.CLIPTextModelWithProjection(
            stated(**TEXT_ENCODER_2)
        ),
    }
    with torch.device("meta"):
        return builders[name]()


def _write_weights(module: torch.nn.Module, path: Path) -> None:
    """As safetensors, one tensor at a time: memory that is touched first is slow on some clouds."""
    tensors = {name: one.contiguous() for name, one in module.state_dict().items()}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        kind = _KINDS[tensor.dtype]
        offsets = [end, end + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.flatten().view(torch.uint8).cpu().numpy().data)


def _fill(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        tensor.copy_(torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape))
    elif tensor.ndim < 2:
        tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    else:
        tensor.normal_(0, _SPREAD / tensor[0].numel() ** 0.5)


def module_shapes(folder: Path | None) -> dict[str, tuple[int, ...]]:
    """What LoRAs may change in the pipeline in `folder`, or in the one that `write_model` writes:
    full module name → weight shape."""
    if folder is None:
        parts: list[Any] = [_empty(name) for name in ("unet", "text_encoder", "text_encoder_2")]
        return lora_targets(*parts).signature_modules()
    classes: dict[str, Any] = {
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    config = transformers.CLIPTextConfig
    unet: Any = diffusers.UNet2DConditionModel
    with torch.device("meta"):
        parts = [unet.from_config(unet.load_config(folder / "unet"))]
        parts += [cls(config.from_pretrained(folder / name)) for name, cls in classes.items()]
    return lora_targets(*parts).signature_modules()


@dataclass(frozen=True)
class LoraFiles:
    """The files' names in one folder, in the order of `KINDS`."""

    folder: Path
    names: list[str]


def write_loras(folder: Path, shapes: Mapping[str, tuple[int, ...]], rank: int) -> LoraFiles:
    """Eight LoRAs for modules of these shapes. The first two change every attention module."""
    whole = [
        name for name, shape in shapes.items()
        if name.startswith("unet.") and len(shape) == 2
        and ("attentions" in name) and not name.endswith("norm")
    ]  # fmt: skip
    few = [name for name in whole if name.endswith(("attn2.to_k", "attn2.to_v"))]
    names = []
    for number, kind in enumerate(KINDS):
        rnd = Randomness(number)
        tensors: dict[str, torch.Tensor] = {}
        # Whole differences are as large as the weights: of a few layers.
        for module in whole if number < 2 else few[:: 8 if kind == "full" else 1]:
            shape = shapes[module]
            fitting = min(rank if number < 2 else 4, *shape)
            for part, tensor in MAKERS[kind](rnd, shape, fitting).items():
                factor = 0.1 if kind == "full" else _WHOLE if number < 2 else 1.0
                scaled = tensor * factor if tensor.ndim > 1 and "dora" not in part else tensor
                tensors[f"{kohya_stem(module)}.{part}"] = scaled.contiguous()
            tensors[f"{kohya_stem(module)}.alpha"] = torch.tensor(float(fitting)).half()
        name = f"lora{number}.safetensors"
        (folder / name).write_bytes(save(tensors))
        names.append(name)
    return LoraFiles(folder, names)


def room(small: bool) -> Path | None:
    """Memory, where the model belongs; elsewhere if it is too little, as in a container."""
    memory = Path("/dev/shm")  # noqa: S108
    if small or not memory.is_dir() or shutil.disk_usage(memory).free < _ROOM_BYTES:
        return None
    return memory
