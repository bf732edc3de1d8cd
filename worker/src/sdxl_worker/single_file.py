"""From a checkpoint in one .safetensors file, in SDXL's original layout, to a pipeline's folder.

Duty: say what a file is by its header, and convert it. Must not know: where it came from.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_HEADER_MAX_BYTES = 100_000_000


class WeightsError(RuntimeError):
    """The weights cannot be had or trusted; the message says which file and what to do."""


# What tells checkpoints apart by the names of their tensors; the first that fits counts.
_SINGLE_FILE_KINDS = (
    ("conditioner.embedders.1.", None),
    ("lora_", "a LoRA: give it with a request as lora_url"),
    ("conditioner.embedders.0.model.", "an SDXL refiner, which draws nothing alone"),
    ("cond_stage_model.", "a Stable Diffusion 1 or 2 checkpoint"),
    ("double_blocks.", "a Flux model"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
)


def check_single_file(path: Path) -> None:
    """That `path` is an SDXL checkpoint in one .safetensors file, by its header alone.

    Raises:
        WeightsError: it is not, and what it seems to be.
    """
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= _HEADER_MAX_BYTES:
            raise WeightsError(f"{path.name} is no .safetensors file")
        try:
            header = json.loads(file.read(length))
            names = [str(name) for name in header]
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path.name} is no .safetensors file") from error
    for mark, kind in _SINGLE_FILE_KINDS:
        if any(mark in name for name in names):
            if kind is None:
                return
            raise WeightsError(f"{path.name} is no SDXL checkpoint: it seems to be {kind}")
    raise WeightsError(
        f"{path.name} is no SDXL checkpoint: it has no text encoders "
        "(conditioner.embedders.1…), so it may be a UNet or a VAE alone"
    )


def convert(path: Path, folder: Path, config: str, *, half: bool) -> None:
    """Write the pipeline of the checkpoint `path` into `folder`, in 16 bit if `half`.

    `config` is a folder or hub name with the configuration that the file does not hold.

    Raises:
        WeightsError: it is no SDXL checkpoint, or it does not fit the configuration.
    """
    check_single_file(path)
    # Imported late: these take seconds, and most uses of this module need neither.
    import torch
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    pipeline: Any = StableDiffusionXLPipeline
    try:
        pipe = pipeline.from_single_file(
            str(path), config=config, torch_dtype=torch.float16 if half else torch.float32
        )
        pipe.save_pretrained(folder, safe_serialization=True)
    except Exception as error:
        raise WeightsError(
            f"{path.name} could not be turned into a pipeline ({type(error).__name__})"
        ) from error
