"""Everything a loaded worker consists of, put together once.

Duty: model → patcher, drawer, LoRA source, caches, description. Must not know: requests, HTTP.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial

import structlog

from sdxl_contract.limits import LORA_MAX_BYTES, BaseModelSignature, ModelLimits
from sdxl_contract.request import GenerateRequest
from sdxl_worker.answering.result import gpu_name
from sdxl_worker.auxiliary.adapters import ADAPTER, find_adapters
from sdxl_worker.auxiliary.provided import CONTROL, UPSCALER, find_controls, find_upscalers
from sdxl_worker.auxiliary.shelf import Shelf, onto
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.drawing.prompts import token_widths
from sdxl_worker.drawing.speeds import choose, fp8_bytes
from sdxl_worker.drawing.structure import Structure
from sdxl_worker.fetching.budget import ByteBudget
from sdxl_worker.fetching.download import Fetcher
from sdxl_worker.fetching.embedding_source import EmbeddingSource
from sdxl_worker.fetching.lora_source import LoraSource
from sdxl_worker.fetching.picture_source import PictureSource
from sdxl_worker.graphs.calls import StaticCalls, Why
from sdxl_worker.graphs.cuda import CudaRecorder
from sdxl_worker.graphs.uploads import Uploads, parsed_onto
from sdxl_worker.kernels.modules import quicken_on
from sdxl_worker.loading.budgets import MemoryPlan
from sdxl_worker.loading.gpu_memory import plan_for
from sdxl_worker.loading.identity import LaterIdentity, weights_identity
from sdxl_worker.loading.pipeline import LoadedModel, describe
from sdxl_worker.lora import DiskTier, LoraCache, LoraPatcher, lora_targets
from sdxl_worker.run import Run
from sdxl_worker.safety import Checker, load_checker
from sdxl_worker.settings import DrawSpeed, Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class Assembly:
    """What exists once the model is loaded.

    Attributes:
        limits: the model's own, and what this worker's settings narrow.
        weights: which model it is; see `loading.identity`.
    """

    model: LoadedModel
    limits: ModelLimits
    weights: LaterIdentity | str
    patcher: LoraPatcher
    drawer: Drawer
    source: LoraSource
    cache: LoraCache
    disk: DiskTier | None
    signature: BaseModelSignature
    gpu: str
    structure: Structure
    pictures: PictureSource
    embeddings: EmbeddingSource
    checker: Checker | None
    shelf: Shelf

    @property
    def known_weights(self) -> str | None:
        """Which model it is; None as long as that is being computed."""
        return self.weights if isinstance(self.weights, str) else self.weights.known

    def which_weights(self) -> str:
        """Which model it is, once that is known."""
        return self.weights if isinstance(self.weights, str) else self.weights.wait()

    def verify_full(self) -> None:
        """Compare every byte and attribute of the model with its start; seconds for a large one.

        Raises:
            ModelCorrupted: anything differs.
        """
        self.patcher.verify_full()
        self.structure.verify_full()
        self.shelf.verify_full()


def assemble(settings: Settings, model: LoadedModel, fetcher: Fetcher) -> Assembly:
    """All parts around `model`; draws the warm-up picture if the settings ask for it."""
    checker = load_checker(settings)
    pipe = model.pipe
    targets = lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    plan = plan_for(
        model.device,
        [pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2],
        copied=sum(parameter.nbytes for _, parameter in targets.patchable()),
        loras=settings.lora_cache_bytes,
        graphs=settings.graph_bytes,
        fp8=fp8_bytes(settings.draw_speed, pipe.unet, model.device, model.dtype),
    )
    roomy = plan is None or plan.pristine > 0
    if not roomy:
        log.warning("small_gpu", kept_on_the_cpu=["pristine copy", "LoRAs"])
    if settings.quick_kernels:
        quicken_on(model.device, model.dtype, (pipe.unet, pipe.vae))
    later = model.device.type == "cpu"
    # On a GPU it takes milliseconds, and the weights' block is made of them afterwards.
    weights = None if later else weights_identity(pipe)
    structure = Structure(pipe, later=later)
    recorder, without = _recorder(settings, model, plan)
    patcher = LoraPatcher(
        targets,
        pristine_device=None if roomy else "cpu",
        # On a GPU it is quick, and nothing else may use the device while graphs are recorded.
        fingerprint_later=later,
        kept=model.mapped,
        one_block=plan is not None and roomy,
        recorder=recorder,
        operand_bytes=plan.operands if plan is not None else 0,
    )
    if settings.draw_speed is not DrawSpeed.EXACT and settings.compile_cache_dir is not None:
        # Where torch looks when it compiles the first time.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(settings.compile_cache_dir)
    # After the patcher, which moves the weights.
    speeds = choose(
        settings.draw_speed,
        pipe,
        targets,
        patcher,
        dtype=model.dtype,
        room=plan is not None and plan.fp8 > 0,
        recorder=recorder,
        watch=structure.watch,
    )

    # Of W0, which no picture that is drawn meanwhile changes.
    identity = LaterIdentity(pipe, patcher.unwritten) if weights is None else weights
    static = StaticCalls(
        recorder,
        plan.guest_graphs if plan else 0,
        without=without,
        more_to_drop=patcher.drop_operands,
    )
    calls = ModelCalls(
        pipe,
        static,
        speeds,
        native_side=model.limits.native_size,
        whole_pixels=model.limits.max_side**2,
    )
    shelf = Shelf(
        [
            *find_upscalers(settings.upscalers_dir),
            *find_controls(settings.controls_dir, pipe.unet),
            *find_adapters(settings.adapters_dir, pipe.unet),
        ],
        settings.auxiliary_bytes,
        onto(model.device),
        static.forget,
    )
    drawer = Drawer(model, settings.images_per_batch, calls, shelf)
    if settings.warmup:
        _warm_up(drawer, model, calls.static)
    cache = LoraCache(plan.loras if plan and plan.loras else settings.lora_cache_bytes)
    disk = (
        DiskTier(settings.lora_cache_dir, settings.lora_cache_dir_bytes)
        if settings.lora_cache_dir
        else None
    )
    on_gpu = roomy and model.device.type == "cuda"
    move = partial(parsed_onto, model.device, Uploads(model.device)) if on_gpu else None
    budget = ByteBudget(settings.lora_bytes_in_flight)
    source = LoraSource(fetcher, cache, targets, disk, move, budget)
    gpu = settings.gpu_name or gpu_name(model.device)
    smallest = min(model.limits.lora_max_bytes, settings.lora_max_bytes, LORA_MAX_BYTES)
    limits = model.limits.model_copy(
        update={
            "lora_max_bytes": smallest,
            "image_max_bytes": min(model.limits.image_max_bytes, settings.image_max_bytes),
            "adapters": tuple(item.about for item in shelf.of_kind(ADAPTER)),
            "controls": tuple(item.about for item in shelf.of_kind(CONTROL)),
            "upscalers": tuple(item.about for item in shelf.of_kind(UPSCALER)),
        }
    )
    return Assembly(
        model=model,
        limits=limits,
        weights=identity,
        patcher=patcher,
        drawer=drawer,
        source=source,
        cache=cache,
        disk=disk,
        signature=describe(model, targets),
        gpu=gpu,
        structure=structure,
        pictures=PictureSource(fetcher, limits),
        embeddings=EmbeddingSource(fetcher, token_widths(pipe)),
        checker=checker,
        shelf=shelf,
    )


def _recorder(
    settings: Settings, model: LoadedModel, plan: MemoryPlan | None
) -> tuple[CudaRecorder | None, Why]:
    """What records calls on the model's GPU, or why nothing does."""
    if plan is None:
        return None, Why.NO_GPU
    if settings.graph_bytes == 0:
        return None, Why.TURNED_OFF
    if not plan.native_graphs:
        return None, Why.BUDGET
    try:
        return CudaRecorder(model.device), Why.NO_GPU
    except Exception as error:
        log.warning("no_graphs", error=repr(error))
        return None, Why.FAILED


def _warm_up(drawer: Drawer, model: LoadedModel, static: StaticCalls) -> None:
    """Draw what a first request may need: where it is recorded or compiled, the native size, with
    guidance and without; else the smallest."""
    limits = model.limits
    native = model.device.type == "cuda" or drawer.speed != DrawSpeed.EXACT.value
    side = limits.nearest_side(limits.native_size if native else limits.min_side)
    static.warming = True
    try:
        for cfg in (5.5, 1.0) if native else (5.5,):
            request = GenerateRequest(
                prompt="warm-up", steps=2, cfg=cfg, width=side, height=side, seed=0
            )
            drawer.draw(Run(request, device=model.device, timeout_s=math.inf))
    finally:
        static.warming = False
    if len(static):
        log.info("graphs_recorded", shapes=len(static), bytes=static.nbytes)
