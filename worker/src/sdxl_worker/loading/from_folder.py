"""An SDXL pipeline from a diffusers folder, without the detours of `from_pretrained`.

Duty: modules built empty, the folder's weights put into them as they are, tokenizers and scheduler.
Gives the same pipeline as `StableDiffusionXLPipeline.from_pretrained`, bit for bit.
Must not know: settings, devices, LoRAs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdxl_worker.loading.weight_reader import CLASSES, Reading


def pipeline_from_folder(
    folder: Path, reading: Reading, dtype: torch.dtype, *, cast: bool = True
) -> Any:
    """The pipeline on the CPU; weights as `dtype`, in evaluation mode.

    Args:
        cast: else weights are as the files have them, for whoever casts them where they go.

    Raises:
        ValueError: the weights do not fit the folder's own configurations.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    diffusers_any: Any = diffusers
    index = json.loads((folder / "model_index.json").read_text())
    parts: dict[str, Any] = {
        name: transformers.CLIPTokenizer.from_pretrained(folder / name)
        for name in ("tokenizer", "tokenizer_2")
    }
    scheduler_class = getattr(diffusers_any, index["scheduler"][-1])
    parts["scheduler"] = scheduler_class.from_pretrained(folder / "scheduler")
    # Parameters without memory. Buffers are real: what is not in the file, such as position
    # numbers, must have its values.
    with no_init_weights(), init_empty_weights(include_buffers=False):
        for name in ("text_encoder", "text_encoder_2"):
            config = transformers.CLIPTextConfig.from_pretrained(folder / name)
            parts[name] = getattr(transformers, CLASSES[name])(config)
        for name in ("unet", "vae"):
            cls = getattr(diffusers_any, CLASSES[name])
            parts[name] = cls.from_config(cls.load_config(folder / name))
    for name in ("text_encoder", "vae", "text_encoder_2", "unet"):
        _fill(parts[name], reading.tensors(name, dtype if cast else None), name)
        for buffer_owner in parts[name].modules():
            for key, buffer in buffer_owner._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    buffer_owner._buffers[key] = buffer.to(dtype)
        parts[name].eval()
    return diffusers_any.StableDiffusionXLPipeline(
        **parts,
        force_zeros_for_empty_prompt=index.get("force_zeros_for_empty_prompt", True),
        add_watermarker=False,
    )


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], component: str) -> None:
    """Make `tensors` the module's parameters, every one of them, without copying."""
    wanted = module.state_dict().keys()
    fitting = {_as_the_module_says(name, wanted): tensor for name, tensor in tensors.items()}
    # Position numbers, which old files hold and modules make themselves.
    for name in [n for n in fitting if n.endswith("position_ids") and n not in wanted]:
        del fitting[name]
    try:
        module.load_state_dict(fitting, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights of {component} do not fit its configuration") from error


def _as_the_module_says(name: str, wanted: Any) -> str:
    """Versions of transformers differ in whether a `text_model.` comes first."""
    if name in wanted:
        return name
    shorter = name.removeprefix("text_model.")
    return (
        shorter
        if shorter in wanted
        else f"text_model.{name}"
        if (f"text_model.{name}" in wanted)
        else name
    )
