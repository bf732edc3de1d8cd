"""From a checkpoint in one .safetensors file, in SDXL's original layout, to a pipeline's folder.

Duty: say what a file is by its header, and convert it. Must not know: where it came from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdxl_contract.lora.safetensors import read_prefix


class WeightsError(RuntimeError):
    """The weights are missing or cannot be trusted; the message names the file and the remedy."""


# What tells checkpoints apart by the names of their tensors; the first that fits counts.
_SINGLE_FILE_KINDS = (
    ("conditioner.embedders.1.", None),
    ("lora_", "a LoRA: give it with a request as lora_url"),
    ("conditioner.embedders.0.model.", "an SDXL refiner, which draws nothing alone"),
    ("cond_stage_model.", "a Stable Diffusion 1 or 2 checkpoint"),
    ("double_blocks.", "a Flux model"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
)


# What a checkpoint must hold; a VAE may be missing, as all of SDXL's models share one.
_PARTS = {
    "model.diffusion_model.": "UNet",
    "conditioner.embedders.0.transformer.": "first text encoder",
}
_VAE = "first_stage_model."
# Empty tensors by which checkpoints say that they predict velocity, and over what noise.
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"


def check_single_file(path: Path) -> frozenset[str]:
    """That `path` is an SDXL checkpoint in one .safetensors file, by its header alone.

    Returns:
        The names of its tensors.

    Raises:
        WeightsError: it is not, and what it seems to be.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(read_prefix(file, path.stat().st_size)[8:])
        names = frozenset(str(name) for name in header)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path.name} is not a .safetensors file") from error
    for mark, kind in _SINGLE_FILE_KINDS:
        if any(mark in name for name in names):
            if kind is None:
                break
            raise WeightsError(f"{path.name} is not an SDXL checkpoint: it looks like {kind}")
    else:
        raise WeightsError(
            f"{path.name} is not an SDXL checkpoint: it lacks text encoders "
            "(conditioner.embedders.1…), so it may be a UNet or a VAE alone"
        )
    for prefix, part in _PARTS.items():
        if not any(name.startswith(prefix) for name in names):
            raise WeightsError(f"{path.name} is incomplete: its {part} is missing")
    return names


def convert(path: Path, folder: Path, config: str, *, half: bool) -> None:
    """Write the pipeline of the checkpoint `path` into `folder`, in 16 bit if `half`.

    `config` is a folder or hub name with the configuration that the file does not hold, and with a
    VAE for a file that has none.

    Raises:
        WeightsError: it is not an SDXL checkpoint, it does not fit the configuration, or a weight
            is not finite in the precision asked for.
    """
    names = check_single_file(path)
    # Imported late: these take seconds, and most uses of this module need neither.
    import torch
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    pipeline: Any = StableDiffusionXLPipeline
    vae_class: Any = AutoencoderKL
    dtype = torch.float16 if half else torch.float32
    parts: dict[str, Any] = {}
    try:
        if not any(name.startswith(_VAE) for name in names):
            parts["vae"] = vae_class.from_pretrained(config, subfolder="vae", dtype=dtype)
        pipe = pipeline.from_single_file(str(path), config=config, torch_dtype=dtype, **parts)
        if _V_PREDICTION in names:
            pipe.scheduler = _predicts_velocity(pipe.scheduler, zero_snr=_ZERO_SNR in names)
        wrong = _not_finite(pipe)
        if wrong is None:
            pipe.save_pretrained(folder, safe_serialization=True)
    except Exception as error:
        raise WeightsError(
            f"{path.name} could not be turned into a pipeline ({type(error).__name__}): it may be "
            "damaged, or of another shape than SDXL"
        ) from error
    if wrong is not None:
        raise WeightsError(
            f"{path.name} cannot be used: {wrong} holds values that are not finite in "
            + ("16 bit: try DTYPE=float32" if half else "32 bit")
        )


def _predicts_velocity(scheduler: Any, *, zero_snr: bool) -> Any:
    """`scheduler` for a model that predicts velocity; with `zero_snr` one that was trained down to
    pure noise, and so has to start there."""
    changes: dict[str, Any] = {"prediction_type": "v_prediction"}
    if zero_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **changes)


def _not_finite(pipe: Any) -> str | None:
    """Name of the first weight with a NaN or an infinity in it, or None."""
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for name, tensor in getattr(pipe, part).state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return f"{part}.{name}"
    return None
