"""From drawn pictures to the result that a caller gets.

Duty: encode, hash, price and describe. Must not know: how the pictures came about, who asked.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdxl_contract import prices
from sdxl_contract.result import (
    Cost,
    GeneratedImage,
    GenerateResult,
    LoraReport,
    Metadata,
    ModelInfo,
    SafetyReport,
)
from sdxl_worker.answering.image_file import (
    embedding_facts,
    encode_image,
    parameters_text,
    picture_facts,
    upscale_text,
)
from sdxl_worker.drawing.drawer import Drawn
from sdxl_worker.run import Run

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True)
class Answer:
    """What is known of a run whose pictures are drawn.

    Attributes:
        scheduler: the sampler's name as results have it.
        gpu: row of the price table, or what the device calls itself.
        usd_per_second: used instead of the table's price.
    """

    run: Run
    drawn: Sequence[Drawn]
    reports: list[LoraReport]
    base_model: str
    weights: str
    scheduler: str
    gpu: str
    usd_per_second: float | None
    safety: SafetyReport | None = None

    def files(self) -> list[bytes]:
        """Each picture as the bytes of a file, with its settings inside."""
        request, canvas = self.run.request, self.run.canvas
        return [
            encode_image(
                one.image,
                request.output_format,
                upscale_text(request.upscale)
                if request.upscale is not None
                else parameters_text(
                    prompt=request.prompt,
                    negative_prompt=request.negative_prompt,
                    steps=request.steps,
                    scheduler=self.scheduler,
                    cfg=request.cfg,
                    seed=one.seed,
                    size=canvas.size if canvas else one.first_size or one.image.size,
                    base_model=self.base_model,
                    loras=self.reports,
                    more=picture_facts(request) | embedding_facts(self.run.embeddings),
                ),
                # What is answered is signed by whoever stores it; an upload is past all that.
                says_made=bool(request.places()),
            )
            for one in self.drawn
        ]

    def result(self, files: Sequence[bytes]) -> GenerateResult:
        """The 200 answer with these files, or without them where they were uploaded."""
        run, request, drawn = self.run, self.run.request, self.drawn
        timings = run.timings()
        keep = not request.places()
        texts = [base64.b64encode(data).decode() if keep else None for data in files]
        hashes = [hashlib.sha256(data).hexdigest() for data in files]
        first = self.reports[0] if self.reports else None
        return GenerateResult(
            image_base64=texts[0],
            image_size=drawn[0].image.size,
            generation_time_seconds=round(time.perf_counter() - run.started, 6),
            model_info=ModelInfo(
                base_model=self.base_model,
                weights=self.weights,
                lora_applied=bool(self.reports),
                lora_version=first.sha256 if first else None,
                lora_scale=first.scale if first else None,
            ),
            metadata=Metadata(
                seed_used=drawn[0].seed,
                actual_steps=request.steps,
                actual_cfg=request.cfg,
                scheduler=self.scheduler,
                seeds=[one.seed for one in drawn],
                first_size=drawn[0].first_size,
            ),
            loras=self.reports,
            timings=timings,
            cost=self._cost(timings.total() - timings.queue),
            image_sha256=hashes[0],
            output_format=request.output_format.value,
            images=[
                GeneratedImage(image_base64=text, image_sha256=digest, seed=one.seed)
                for text, digest, one in zip(texts, hashes, drawn, strict=True)
            ]
            if len(files) > 1
            else [],
            model_clean=True if run.clean and run.structure_clean else None,
            structure_clean=True if run.structure_clean else None,
            request_id=run.id,
            drawing=run.drawing,
            safety=self.safety,
        )

    def _cost(self, seconds: float) -> Cost | None:
        price = self.usd_per_second
        if price is None:
            price = prices.USD_PER_SECOND.get(self.gpu)
        if price is None:
            return None
        return Cost(
            usd=round(seconds * price, 8),
            gpu=self.gpu,
            seconds=round(seconds, 6),
            usd_per_second=price,
        )


def gpu_name(device: torch.device) -> str:
    """The row of the price table that the device is, or what it calls itself."""
    if device.type != "cuda":
        return device.type
    name = torch.cuda.get_device_name(device)
    for known in sorted(prices.USD_PER_SECOND, key=len, reverse=True):
        kind = known.split("-")[0]
        if {kind, f"{kind}G"} & set(name.split()) or f"{kind}-" in name:  # "A10G" is an A10
            memory = torch.cuda.get_device_properties(device).total_memory / 2**30
            if kind == "A100":
                return "A100-80GB" if memory > 60 else "A100-40GB"
            return known
    return name
