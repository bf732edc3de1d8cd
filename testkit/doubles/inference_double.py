"""Stands where the worker's client would: draws at once, or fails as told."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable

from PIL import Image

from app.services.modal_sdxl_lora_client import InferenceOutcome, OnEvent
from app.services.worker.answer import DecodedImage
from sdxl_contract.errors import Cancelled, ModelLoadFailed
from sdxl_contract.limits import BaseModelSignature, ModelLimits
from sdxl_contract.request import GenerateRequest, Scheduler
from sdxl_contract.result import (
    Cost,
    GeneratedImage,
    GenerateResult,
    Health,
    HealthStatus,
    LoraReport,
    Metadata,
    ModelInfo,
    SafetyReport,
    Timings,
    WorkerEvent,
)

SDXL = ModelLimits()
SECONDS = Timings(queue=5.0, text_encode=1.0, denoise=8.0, decode=1.0)


SCHEDULERS = ["default", "euler", "lcm", "euler_trailing"]


def final_size(request: GenerateRequest, limits: ModelLimits) -> tuple[int, int]:
    """What the answer's pictures have, px."""
    if request.upscale is not None:
        return request.upscale.size((64, 64))  # it looks at no source
    size = request.size(limits)
    return request.hires.size(size, limits.multiple_of) if request.hires else size


def draw_picture(request: GenerateRequest, seed: int, limits: ModelLimits = SDXL) -> bytes:
    """A one-colour picture that depends on everything a picture depends on.

    What the request leaves open the model decides, as in the worker.
    """
    width, height = final_size(request, limits)
    loras = [(ref.sha256, ref.scale) for ref in request.loras]
    mark = (
        f"{request.prompt}|{request.negative_prompt}|{seed}|{request.steps}|{loras}"
        f"|{request.scheduler}" + (f"|{request.hires}" if request.hires else "")
    )
    colour = tuple(hashlib.sha256(mark.encode()).digest()[:3])
    file = io.BytesIO()
    kind = request.output_format.value.upper()
    # A PNG packed as quickly as can be: a thousand tests have one drawn.
    Image.new("RGB", (width, height), colour).save(file, kind, compress_level=1)
    return file.getvalue()


def _sampler(request: GenerateRequest) -> str:
    if request.scheduler is Scheduler.DEFAULT:
        return "EulerDiscreteScheduler"  # the model's own, by its class, as the worker states it
    return request.scheduler.value


class InferenceDouble:
    """The same calls as `LoraInference`. `failures` are raised one per call, first first."""

    def __init__(self, *, gpu: str = "L4", limits: ModelLimits | None = None) -> None:
        self.gpu = gpu
        self.limits = limits or ModelLimits()
        self.schedulers = SCHEDULERS
        self.failures: list[BaseException] = []
        self.events: list[WorkerEvent] = []
        self.event_pause = 0.0  # seconds before each
        self.requests: list[GenerateRequest] = []
        self.cancelled: list[str] = []
        self.is_up = True
        self.safety: SafetyReport | None = None
        self.weights: str | None = None
        self.signature: BaseModelSignature | None = None
        self.gate = asyncio.Event()  # drawing waits for it
        self.gate.set()

    async def generate(
        self,
        build_request: Callable[[], Awaitable[GenerateRequest]],
        *,
        request_id: str,
        deadline_s: float,
        on_event: OnEvent | None = None,
    ) -> InferenceOutcome:
        request = await build_request()
        self.requests.append(request)
        if on_event is not None:
            for event in self.events:
                await asyncio.sleep(self.event_pause)
                await on_event(event)
        await self.gate.wait()
        if request_id in self.cancelled:
            raise Cancelled("stopped")
        if self.failures:
            raise self.failures.pop(0)
        assert request.seed is not None
        seeds = [request.seed + n for n in range(request.num_images)]
        images = [draw_picture(request, seed, self.limits) for seed in seeds]
        result = GenerateResult(
            image_size=final_size(request, self.limits),
            generation_time_seconds=15.0,
            model_info=ModelInfo(
                base_model="double", weights=self.weights, lora_applied=bool(request.loras)
            ),
            metadata=Metadata(
                seed_used=request.seed,
                actual_steps=request.steps,
                actual_cfg=request.cfg,
                seeds=seeds,
                scheduler=_sampler(request),
                first_size=request.size(self.limits) if request.hires else None,
            ),
            output_format=request.output_format.value,
            loras=[
                LoraReport(
                    sha256=ref.sha256, scale=ref.scale, format="kohya", rank=4, modules_matched=1
                )
                for ref in request.loras
            ],
            timings=SECONDS,
            cost=Cost(usd=0.0, gpu=self.gpu, seconds=10.0, usd_per_second=0.0),
            images=[
                GeneratedImage(image_sha256=hashlib.sha256(data).hexdigest(), seed=seed)
                for data, seed in zip(images, seeds, strict=True)
            ],
            model_clean=True,
            safety=self.safety,
        )
        decoded = [DecodedImage(data, None) for data in images]
        return InferenceOutcome(result=result, images=decoded, provider="double", attempts=1)

    async def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    async def health(self, *, include_modules: bool = False) -> Health:
        if not self.is_up:
            raise ModelLoadFailed("the worker cannot be reached")
        return Health(
            status=HealthStatus.READY,
            base_model="double",
            weights=self.weights,
            device="cpu",
            gpu=self.gpu,
            limits=self.limits,
            schedulers=self.schedulers,
            signature=self.signature,
        )

    async def aclose(self) -> None:
        return None
