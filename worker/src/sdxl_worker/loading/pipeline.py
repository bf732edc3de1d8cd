"""Builds the SDXL pipeline from a folder, a hub name or one file, and describes it.

Duty: the right precision for the device, a VAE that does not overflow, no safety checker, no
progress bars. Must not know: requests or LoRAs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
import torch

from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.limits import BaseModelSignature, ModelLimits
from sdxl_worker.loading.from_folder import pipeline_from_folder
from sdxl_worker.loading.mapped_weights import MappedFiles
from sdxl_worker.loading.onto_gpu import move_onto_gpu
from sdxl_worker.loading.weight_reader import Reading, start_reading
from sdxl_worker.lora import ModelTargets
from sdxl_worker.settings import Dtype, Settings

log = structlog.get_logger()
# The model folder may state its own limits; SDXL's are the defaults.
LIMITS_FILE = "limits.json"
_SDXL_FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
_SDXL_CROSS_ATTENTION = 2048


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline and what is known of it.

    Attributes:
        mapped: the files that its weights may be views of.
    """

    pipe: Any
    name: str
    device: torch.device
    dtype: torch.dtype
    limits: ModelLimits
    channels_last: bool | None = None
    mapped: MappedFiles | None = None


def choose_device(setting: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if setting != "auto":
        return torch.device(setting)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(setting: Dtype, device: torch.device) -> torch.dtype:
    """`auto`: fp32 on a CPU; on a GPU bf16 where it has it, else fp16."""
    if setting is not Dtype.AUTO:
        dtype: torch.dtype = getattr(torch, setting.value)
        return dtype
    if device.type == "cpu":
        return torch.float32
    with torch.cuda.device(device):
        # Of the hardware: torch also offers an emulation, which is many times slower.
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float16


def load_model(settings: Settings, reading: Reading | None = None) -> LoadedModel:
    """The pipeline that `settings.base_model` names, on its device.

    Args:
        reading: what `start_reading` began for that folder, if it was called before.

    Raises:
        ModelLoadFailed: it cannot be loaded; the message holds no path.
    """
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    folder = Path(settings.base_model)
    name = folder.stem if folder.suffix == ".safetensors" else folder.name
    try:
        if reading is not None and reading.half and dtype is torch.float32:
            reading.drop()
            reading = None
        if reading is None:
            reading = start_reading(
                folder,
                half=dtype is not torch.float32,
                mapped=settings.maps_weights(on_cpu=device.type == "cpu"),
            )
        pipe = _load(settings, folder, device, dtype, reading)
        if reading is not None and reading.stayed is not None:
            log.info("weights_not_sent_early", because=reading.stayed)
        limits = _limits(folder, pipe)
    except Exception as error:
        if reading is not None:
            # Some of it may be on the GPU, and this process stays, to say what failed.
            reading.drop()
        raise ModelLoadFailed(
            f"the base model {name} could not be loaded ({type(error).__name__})",
            details={"base_model": name},
        ) from error
    _check_channels(pipe, name)
    mapped = reading.mapped if reading is not None and device.type == "cpu" else None
    return LoadedModel(pipe, name, device, dtype, limits, settings.channels_last, mapped)


def _check_channels(pipe: Any, name: str) -> None:
    """A UNet that wants more than latents loads, and would fail at every drawing."""
    takes, latents = int(pipe.unet.config.in_channels), int(pipe.vae.config.latent_channels)
    if takes != latents:
        purpose = "inpainting" if takes == 2 * latents + 1 else "something else"
        raise ModelLoadFailed(
            f"the base model {name} was made for {purpose}: its UNet takes {takes} "
            f"channels, and a drawing has {latents}; BASE_MODEL must be a text-to-image model "
            "(masks are drawn with any)",
            details={"base_model": name, "channels": takes},
        )


def _load(
    settings: Settings,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    reading: Reading | None,
) -> Any:
    # Imported late: diffusers takes seconds, and a worker that only explains why it cannot start
    # should not wait for it.
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    vae_class: Any = diffusers.AutoencoderKL
    pipeline_class: Any = diffusers.StableDiffusionXLPipeline

    if settings.hf_home is not None:
        os.environ.setdefault("HF_HOME", str(settings.hf_home))
    token = settings.huggingface_hub_token
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "add_watermarker": False,
    }
    hub: dict[str, Any] = {}
    if not folder.exists():
        hub = {
            "revision": settings.base_model_revision,
            "token": token.get_secret_value() if token else None,
        }
    if folder.suffix == ".safetensors":
        del options["use_safetensors"]
        pipe = pipeline_class.from_single_file(str(folder), **options)
    else:
        pipe = _from_reading(folder, reading, dtype, device)
        if pipe is None:
            pipe = _from_pretrained(pipeline_class, settings.base_model, dtype, options, hub)
    vae = settings.vae_model
    if (
        vae is None
        and dtype is torch.float16
        and device.type == "cuda"
        and pipe.unet.config.cross_attention_dim == _SDXL_CROSS_ATTENTION
        and not folder.exists()
    ):
        # SDXL's own VAE overflows in fp16; this one was retrained to stay in range.
        vae = _SDXL_FP16_VAE
    if vae is not None:
        pipe.vae = vae_class.from_pretrained(vae, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    _place(pipe, device, dtype, settings.channels_last)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        # As diffusers leaves its weights. Nothing here makes gradients, and for weights that need
        # none torch takes other products, with other roundings.
        module.eval().requires_grad_(True)
    return pipe


def move_model(model: LoadedModel, device: torch.device) -> LoadedModel:
    """`model` on `device`, in the memory layout that is fastest there; moved, not copied."""
    _place(model.pipe, device, model.dtype, model.channels_last)
    mapped = model.mapped if device.type == "cpu" else None
    return replace(model, device=device, mapped=mapped)


def _place(pipe: Any, device: torch.device, dtype: torch.dtype, channels_last: bool | None) -> None:
    if device.type == "cuda":
        parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        move_onto_gpu(parts, device, dtype)
        for part in parts:
            # What stayed where it was; not by diffusers' own `to`, which warns of parts kept in
            # another precision, of which SDXL has none.
            torch.nn.Module.to(part, dtype)
    # All that is left: everything, but on a GPU.
    pipe.to(device)
    if channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)


def _from_reading(
    folder: Path, reading: Reading | None, dtype: torch.dtype, device: torch.device
) -> Any:
    """The fast way, or None where only diffusers' own loader knows the folder's dialect."""
    if reading is None:
        return None
    try:
        return pipeline_from_folder(folder, reading, dtype, cast=device.type != "cuda")
    except ValueError as error:
        log.warning("folder_needs_the_slow_loader", reason=str(error))
        reading.drop()
        return None


def _from_pretrained(
    cls: Any, name: str, dtype: torch.dtype, options: dict[str, Any], hub: dict[str, Any]
) -> Any:
    """With the half-precision files of the hub where there are such: half the download."""
    if dtype is not torch.float32:
        try:
            return cls.from_pretrained(name, variant="fp16", **options, **hub)
        except (ValueError, OSError):
            pass
    return cls.from_pretrained(name, **options, **hub)


def _limits(folder: Path, pipe: Any) -> ModelLimits:
    path = folder / LIMITS_FILE
    stated = json.loads(path.read_text()) if path.is_file() else {}
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    layers = min(int(encoder.config.num_hidden_layers) for encoder in encoders)
    limits = ModelLimits.model_validate(stated)
    return limits.model_copy(update={"clip_skip_max": min(layers - 1, limits.clip_skip_max)})


def describe(model: LoadedModel, targets: ModelTargets) -> BaseModelSignature:
    """What decides whether a LoRA fits `model`."""
    pipe = model.pipe
    return BaseModelSignature(
        name=model.name,
        family="SDXL",
        cross_attention_dim=int(pipe.unet.config.cross_attention_dim),
        text_encoder_hidden_sizes=(
            int(pipe.text_encoder.config.hidden_size),
            int(pipe.text_encoder_2.config.hidden_size),
        ),
        layers_per_block=int(pipe.unet.config.layers_per_block),
        modules=targets.signature_modules(),
    )
