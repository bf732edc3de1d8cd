"""Plain diffusers and the worker behind one face, for `gpu_generate.py`.

Duty: load a model as a variant says, draw with it, swap a LoRA per request, read the clock.
Must not know: repeats, comparisons, tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from benchmarks.swap_sides import kohya_lora
from sdxl_contract.prices import usd
from sdxl_contract.request import GenerateRequest
from sdxl_worker.drawing.drawer import Drawer, image_seeds
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.graphs.calls import StaticCalls
from sdxl_worker.graphs.cuda import CudaRecorder
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.lora import LoraPatcher, lora_targets, parse_lora
from sdxl_worker.run import Run
from sdxl_worker.settings import Dtype, Settings

_T = TypeVar("_T")

PROMPT = "a red apple on a wooden table, soft light"
CFG = 5.5
SEED = 7
RANK = 32
LORA_SCALE = 0.8
# Of graphs and of operands that come again: what the service has on a card of 40 GB and more.
_GRAPH_BYTES, _OPERAND_BYTES = 8 << 30, 3 << 30
SHORT = {Dtype.FLOAT16: "fp16", Dtype.BFLOAT16: "bf16", Dtype.FLOAT32: "fp32"}


@dataclass(frozen=True)
class Task:
    """What every variant of a run has in common.

    Attributes:
        size: a side in px.
        vae: folder or hub name of the VAE that variants with `vae` take instead of the model's.
    """

    model: str
    device: torch.device
    size: int
    steps: int
    repeats: int
    gpu: str
    vae: str | None = None

    def usd(self, seconds: float) -> float | None:
        """Price of `seconds`; None on a CPU and on a GPU that the price table does not hold."""
        return usd(self.gpu, seconds) if self.device.type == "cuda" else None


@dataclass(frozen=True)
class Variant:
    """One way to draw; `at_once` pictures are one request."""

    ours: bool
    dtype: Dtype
    channels_last: bool = False
    compiled: bool = False
    sdpa: bool = True
    vae: bool = False
    at_once: int = 1
    lora: bool = False
    seed: int = SEED

    @property
    def name(self) -> str:
        """Such as `ours-bf16-channels-last`."""
        parts = ["ours" if self.ours else "diffusers", SHORT[self.dtype]]
        parts += ["channels-last"] * self.channels_last + ["compiled"] * self.compiled
        parts += ["without-sdpa"] * (not self.sdpa) + ["other-vae"] * self.vae
        parts += [f"{self.at_once}-at-once"] * (self.at_once > 1) + ["lora"] * self.lora
        return "-".join(parts + [f"seed-{self.seed}"] * (self.seed != SEED))

    @property
    def loading(self) -> tuple[object, ...]:
        """Variants equal in this can share a loaded model."""
        return self.ours, self.dtype, self.channels_last, self.compiled, self.sdpa, self.vae


class Side(Protocol):
    """A loaded model that draws."""

    def draw(self, variant: Variant) -> list[Image.Image]:
        """The variant's pictures, on the model as it stands."""

    def draw_with_lora(self, variant: Variant, clock: Clock) -> list[Image.Image]:
        """The same with the LoRA, put in before and taken out after; parts on the `clock`."""


class Clock:
    """Seconds of named parts, the device being waited for at both ends of each."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self.parts: dict[str, float] = {}

    def time(self, part: str, action: Callable[[], _T]) -> _T:
        """What `action` returns; its seconds become `parts[part]`."""
        self._wait()
        started = time.perf_counter()
        result = action()
        self._wait()
        self.parts[part] = time.perf_counter() - started
        return result

    def _wait(self) -> None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)


def make_lora(pipe: Any) -> dict[str, Tensor]:
    """The same LoRA for both sides: kohya's names, F16, on the CPU."""
    return kohya_lora(lora_targets(pipe.unet), RANK, seed=1, text=False)


class Plain:
    """diffusers as its documentation shows it."""

    def __init__(self, task: Task, variant: Variant) -> None:
        self._task = task
        options: dict[str, Any] = {
            "dtype": getattr(torch, variant.dtype.value), "use_safetensors": True,
            "add_watermarker": False,
        }  # fmt: skip
        cls: Any = diffusers.StableDiffusionXLPipeline
        files = None if variant.dtype is Dtype.FLOAT32 else "fp16"
        try:
            self._pipe = cls.from_pretrained(task.model, variant=files, **options)
        except (ValueError, OSError):
            # Not every model has files of half precision beside the full ones.
            self._pipe = cls.from_pretrained(task.model, **options)
        self._pipe.to(task.device)
        self._pipe.set_progress_bar_config(disable=True)
        self._lora: dict[str, Tensor] | None = None

    def draw(self, variant: Variant) -> list[Image.Image]:
        """The variant's pictures, on the model as it stands."""
        seeds = image_seeds(variant.seed, variant.at_once)
        pictures: list[Image.Image] = self._pipe(
            PROMPT,
            width=self._task.size,
            height=self._task.size,
            num_inference_steps=self._task.steps,
            guidance_scale=CFG,
            num_images_per_prompt=variant.at_once,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images
        return pictures

    def draw_with_lora(self, variant: Variant, clock: Clock) -> list[Image.Image]:
        """The same with the LoRA, put in before and taken out after; parts on the `clock`."""
        pipe = self._pipe
        self._lora = self._lora or make_lora(pipe)
        only = ["unet"]
        clock.time("load_s", partial(pipe.load_lora_weights, self._lora))
        clock.time("fuse_s", partial(pipe.fuse_lora, components=only, lora_scale=LORA_SCALE))
        pictures = self.draw(variant)
        clock.time("unfuse_s", partial(pipe.unfuse_lora, components=only))
        clock.time("unload_s", pipe.unload_lora_weights)
        return pictures


class Worker:
    """The worker's own loader, drawer and patcher, without its HTTP face."""

    def __init__(self, task: Task, variant: Variant) -> None:
        self._task = task
        self._model = load_model(
            Settings(
                base_model=task.model,
                device=str(task.device),
                dtype=variant.dtype,
                channels_last=variant.channels_last,
                vae_model=task.vae if variant.vae else None,
            )
        )
        if variant.compiled:
            # Block by block: one graph for each kind of block, in a fraction of the whole's time.
            self._model.pipe.unet.compile_repeated_blocks(fullgraph=True)
        if not variant.sdpa:
            # Products and softmax one by one, as before PyTorch had attention of its own.
            self._model.pipe.unet.set_attn_processor(AttnProcessor())
        self._targets = lora_targets(self._model.pipe.unet)
        self._drawers: dict[int, Drawer] = {}
        # As the service has them on a GPU. The patcher first: it moves the weights, where graphs
        # that were recorded before would not find them.
        on_gpu = task.device.type == "cuda"
        self._recorder = CudaRecorder(task.device) if on_gpu else None
        self._patcher = LoraPatcher(
            self._targets,
            one_block=on_gpu,
            recorder=self._recorder,
            operand_bytes=_OPERAND_BYTES if on_gpu else 0,
        )
        self._file = b""

    def draw(self, variant: Variant) -> list[Image.Image]:
        """The variant's pictures, on the model as it stands."""
        if variant.at_once not in self._drawers:
            static = StaticCalls(self._recorder, _GRAPH_BYTES)
            calls = ModelCalls(self._model.pipe, static)
            self._drawers[variant.at_once] = Drawer(self._model, variant.at_once, calls)
        request = GenerateRequest(
            prompt=PROMPT,
            steps=self._task.steps,
            cfg=CFG,
            width=self._task.size,
            height=self._task.size,
            num_images=variant.at_once,
            seed=variant.seed,
        )
        run = Run(request, device=self._task.device, timeout_s=math.inf)
        drawn = self._drawers[variant.at_once].draw(run)
        return [one.image for one in drawn]

    def draw_with_lora(self, variant: Variant, clock: Clock) -> list[Image.Image]:
        """The same with the LoRA, put in before and taken out after; parts on the `clock`."""
        self._file = self._file or save(make_lora(self._model.pipe))
        device = self._task.device
        lora = clock.time("parse_s", lambda: parse_lora(self._file, self._targets).to(device))
        clock.time("apply_s", partial(self._patcher.apply, [(lora, LORA_SCALE)]))
        pictures = self.draw(variant)
        clock.time("restore_s", self._patcher.restore)
        return pictures
