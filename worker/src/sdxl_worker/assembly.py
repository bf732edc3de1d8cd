"""Everything a loaded worker consists of, put together once.

Duty: model → patcher, drawer, LoRA source, caches, description. Must not know: requests, HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from sdxl_contract.limits import LORA_MAX_BYTES, BaseModelSignature, ModelLimits
from sdxl_contract.request import GenerateRequest
from sdxl_worker.answering.result import gpu_name
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.fetching.download import Fetcher
from sdxl_worker.fetching.lora_source import LoraSource
from sdxl_worker.loading.gpu_memory import holds_second_copy
from sdxl_worker.loading.pipeline import LoadedModel, describe
from sdxl_worker.lora import DiskTier, LoraCache, LoraPatcher, ParsedLora, lora_targets
from sdxl_worker.run import Run
from sdxl_worker.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class Ready:
    """What exists once the model is loaded.

    Attributes:
        limits: the model's own, and what this worker's settings narrow.
    """

    model: LoadedModel
    limits: ModelLimits
    patcher: LoraPatcher
    drawer: Drawer
    source: LoraSource
    cache: LoraCache
    disk: DiskTier | None
    signature: BaseModelSignature
    gpu: str


def assemble(settings: Settings, model: LoadedModel, fetcher: Fetcher) -> Ready:
    """All parts around `model`; draws the warm-up picture if the settings ask for it."""
    pipe = model.pipe
    targets = lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    roomy = holds_second_copy(
        model.device,
        [pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2],
        copied=sum(parameter.nbytes for _, parameter in targets.patchable()),
        more=settings.lora_cache_bytes,
    )
    if not roomy:
        log.warning("small_gpu", kept_on_the_cpu=["pristine copy", "LoRAs"])
    patcher = LoraPatcher(
        targets,
        pristine_device=None if roomy else "cpu",
        fingerprint_later=True,
        kept=model.mapped,
    )
    drawer = Drawer(model, settings.images_per_batch)
    if settings.warmup:
        _warm_up(drawer, model)
    cache = LoraCache(settings.lora_cache_bytes)
    disk = (
        DiskTier(settings.lora_cache_dir, settings.lora_cache_dir_bytes)
        if settings.lora_cache_dir
        else None
    )
    on_gpu = roomy and model.device.type == "cuda"
    move: Callable[[ParsedLora], ParsedLora] = (
        (lambda lora: lora.to(model.device)) if on_gpu else (lambda lora: lora)
    )
    source = LoraSource(fetcher, cache, targets, disk, move)
    gpu = settings.gpu_name or gpu_name(model.device)
    smallest = min(model.limits.lora_max_bytes, settings.lora_max_bytes, LORA_MAX_BYTES)
    limits = model.limits.model_copy(update={"lora_max_bytes": smallest})
    return Ready(model, limits, patcher, drawer, source, cache, disk, describe(model, targets), gpu)


def _warm_up(drawer: Drawer, model: LoadedModel) -> None:
    side = model.limits.nearest_side(model.limits.min_side)
    request = GenerateRequest(prompt="warm-up", steps=2, width=side, height=side, seed=0)
    drawer.draw(Run(request, device=model.device, timeout_s=math.inf))
