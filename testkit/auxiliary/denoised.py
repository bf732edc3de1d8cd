"""One small pipeline, drawn by our loop and by diffusers' own classes from the same noise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from torch import Tensor

from sdxl_contract.request import Scheduler
from sdxl_worker.drawing.beginnings import Ground, from_ground, from_noise
from sdxl_worker.drawing.controls import Attachments, Held
from sdxl_worker.drawing.denoising import Denoising
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.drawing.prompts import Conditioning
from sdxl_worker.drawing.references import Shown, attached
from sdxl_worker.drawing.schedulers import build_scheduler
from testkit.loras.making import TE1_WIDTH, TE2_WIDTH, tiny_model

OWN: Any = EulerDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
)
STEPS, SIDE, GUIDANCE = 4, 64, 5.5
_random = torch.Generator().manual_seed(3)
SOURCE = torch.randn(1, 4, 8, 8, generator=_random)
TOLD = Conditioning(
    torch.randn(1, 77, TE1_WIDTH + TE2_WIDTH, generator=_random),
    torch.randn(1, TE2_WIDTH, generator=_random),
    torch.randn(1, 77, TE1_WIDTH + TE2_WIDTH, generator=_random),
    torch.randn(1, TE2_WIDTH, generator=_random),
)


def tiny_pipe() -> Any:
    """Random weights in an SDXL's shape."""
    model = tiny_model(torch.float32, widths=(32, 32, 32), depths=(1, 1, 1))
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=model.text_encoder, text_encoder_2=model.text_encoder_2,
        tokenizer=None, tokenizer_2=None, unet=model.unet, scheduler=OWN, add_watermarker=False,
    )  # fmt: skip


def ours(
    pipe: Any,
    controls: Sequence[Held] = (),
    strength: float | None = None,
    shown: Sequence[Shown] = (),
    guidance: float = GUIDANCE,
) -> Tensor:
    """Latents of our loop, over `SOURCE` where a strength is given."""
    scheduler = build_scheduler(Scheduler.EULER, OWN, STEPS)
    scheduler.set_timesteps(STEPS)
    generators = [torch.Generator().manual_seed(7)]
    if strength is None:
        begin = from_noise(generators, (4, 8, 8), SOURCE, scheduler)
    else:
        begin = from_ground(
            Ground(SOURCE), generators, scheduler, STEPS, int(STEPS * strength), is_whole=False
        )
    denoising = Denoising(
        predict=ModelCalls(pipe).unet, scheduler=scheduler, latents=begin.latents,
        first=begin.first, conditioning=TOLD, size=(SIDE, SIDE), guidance=guidance,
        generators=generators,
        attach=Attachments(controls, STEPS - begin.first) if controls else None,
    )  # fmt: skip
    with attached(denoising, shown, STEPS - begin.first, pipe.unet) as whole:
        return whole.run()


def theirs(
    pipe: Any,
    name: str,
    parts: dict[str, Any],
    adapters: Sequence[tuple[dict[str, Any], float]] = (),
    **call: Any,
) -> Tensor:
    """Latents of diffusers' class `name`, with adapters' tensors loaded into a UNet of its own."""
    kind = getattr(diffusers, name)
    more: dict[str, Any] = {"requires_aesthetics_score": False} if "Img2Img" in name else {}
    if "Adapter" not in name:
        more["add_watermarker"] = False
    unet = copy.deepcopy(pipe.unet) if adapters else pipe.unet
    other = kind(**(pipe.components | {"unet": unet} | parts), **more)
    other.set_progress_bar_config(disable=True)
    other.scheduler = build_scheduler(Scheduler.EULER, OWN, STEPS)
    if adapters:
        tensors = [one for one, _ in adapters]
        count = len(tensors)
        other.load_ip_adapter(tensors, subfolder=[""] * count, weight_name=[""] * count)
        other.set_ip_adapter_scale([scale for _, scale in adapters])
    found: Tensor = other(
        num_inference_steps=STEPS, height=SIDE, width=SIDE,
        prompt_embeds=TOLD.prompt, pooled_prompt_embeds=TOLD.pooled,
        negative_prompt_embeds=TOLD.negative_prompt,
        negative_pooled_prompt_embeds=TOLD.negative_pooled,
        generator=[torch.Generator().manual_seed(7)], output_type="latent",
        **({"guidance_scale": GUIDANCE} | call),
    ).images  # fmt: skip
    return found
