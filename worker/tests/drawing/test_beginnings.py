"""Drawing from a source gives diffusers' own bits, wherever diffusers has the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from sdxl_contract.pictures import Fill, drawn_steps
from sdxl_contract.request import RETIRED_SCHEDULERS, Scheduler
from sdxl_worker.drawing.beginnings import Ground, from_ground, from_noise
from sdxl_worker.drawing.denoising import Denoising
from sdxl_worker.drawing.schedulers import build_scheduler, scheduler_eta
from testkit.auxiliary.denoised import GUIDANCE, OWN, SIDE, SOURCE, STEPS, TOLD
from testkit.loras.making import tiny_model

pytestmark = pytest.mark.process


SAMPLERS = [name for name in Scheduler if name not in RETIRED_SCHEDULERS]
# In whole latent pixels, as diffusers' mask is.
MASK = torch.zeros(1, 1, 8, 8)
MASK[..., 2:7, 3:] = 1


@pytest.fixture(scope="module")
def pipe() -> Any:
    model = tiny_model(torch.float32, widths=(32, 32, 32), depths=(1, 1, 1))
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=model.text_encoder, text_encoder_2=model.text_encoder_2,
        tokenizer=None, tokenizer_2=None, unet=model.unet, scheduler=OWN, add_watermarker=False,
    )  # fmt: skip


def theirs(pipe: Any, name: Scheduler, strength: float, mask: Tensor | None = None) -> Tensor:
    kind: Any = StableDiffusionXLInpaintPipeline if mask is not None else (
        StableDiffusionXLImg2ImgPipeline
    )  # fmt: skip
    other = kind(**pipe.components, requires_aesthetics_score=False, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    other.scheduler = build_scheduler(name, OWN, STEPS)
    more: dict[str, Any] = {}
    if mask is not None:
        large = torch.nn.functional.interpolate(mask, scale_factor=8, mode="nearest")
        more = {"mask_image": large, "height": SIDE, "width": SIDE}
    found: Tensor = other(
        image=SOURCE, strength=strength, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        prompt_embeds=TOLD.prompt, pooled_prompt_embeds=TOLD.pooled,
        negative_prompt_embeds=TOLD.negative_prompt,
        negative_pooled_prompt_embeds=TOLD.negative_pooled, eta=scheduler_eta(name),
        generator=[torch.Generator().manual_seed(7)], output_type="latent", **more,
    ).images  # fmt: skip
    return found


def ours(
    pipe: Any, name: Scheduler, strength: float, ground: Ground, seeds: tuple[int, ...] = (7,)
) -> Tensor:
    scheduler = build_scheduler(name, OWN, STEPS)
    scheduler.set_timesteps(STEPS)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    begin = from_ground(
        ground, generators, scheduler, STEPS, drawn_steps(STEPS, strength),
        is_whole=strength == 1.0,
    )  # fmt: skip
    return Denoising(
        predict=lambda i, extra: pipe.unet(
            i.sample, i.timestep, encoder_hidden_states=i.embeds,
            added_cond_kwargs={"text_embeds": i.pooled, "time_ids": i.time_ids},
        ).sample,
        scheduler=scheduler, latents=begin.latents, first=begin.first, blend=begin.blend,
        conditioning=TOLD, size=(SIDE, SIDE), guidance=GUIDANCE, generators=generators,
        eta=scheduler_eta(name),
    ).run()  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_from_a_source_with_diffusers_own_bits(
    pipe: Any, name: Scheduler
) -> None:
    for strength in (0.5, 1.0) if name is Scheduler.EULER else (0.5,):
        expected = theirs(pipe, name, strength)
        assert torch.isfinite(expected).all()
        assert torch.equal(ours(pipe, name, strength, Ground(SOURCE)), expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_inpaints_with_diffusers_own_bits(pipe: Any, name: Scheduler) -> None:
    for strength in (0.8, 1.0) if name is Scheduler.EULER else (0.8,):
        expected = theirs(pipe, name, strength, MASK)
        assert torch.isfinite(expected).all()
        assert torch.equal(ours(pipe, name, strength, Ground(SOURCE, MASK)), expected)


def test_a_beginning_that_differed_in_anything_would_be_found(pipe: Any) -> None:
    expected = ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE, MASK))
    shifted = MASK.roll(1, dims=-1)
    others = [
        ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE)),
        ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE, shifted)),
        ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE * 1.01, MASK)),
        ours(pipe, Scheduler.EULER, 0.5, Ground(SOURCE, MASK)),
        ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE, MASK, Fill.NOISE)),
        ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE, MASK, Fill.NOTHING)),
        ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE, MASK * 0.7)),
        ours(pipe, Scheduler.EULER, 0.8, Ground(SOURCE, MASK * 0.5, soft=True)),
    ]
    assert not any(torch.equal(other, expected) for other in others)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("fill", list(Fill))
def test_what_the_mask_leaves_is_the_source_s_own_in_the_end(
    pipe: Any, soft: bool, fill: Fill
) -> None:
    grey = MASK * torch.linspace(0.2, 1, 8)
    found = ours(pipe, Scheduler.DPMPP_2M, 0.8, Ground(SOURCE, grey, fill, soft))
    outside = (MASK == 0).expand_as(SOURCE)
    assert torch.equal(found[outside], SOURCE[outside])
    assert not torch.isclose(found[~outside], SOURCE[~outside]).any()


def test_a_darker_grey_of_a_soft_mask_is_let_go_later() -> None:
    scheduler = build_scheduler(Scheduler.EULER, OWN, 4)
    scheduler.set_timesteps(4)
    grey = torch.tensor([0.0, 0.2, 0.3, 0.6, 0.8, 1.0]).view(1, 1, 1, 6)
    source = torch.zeros(1, 4, 1, 6)
    begin = from_ground(
        Ground(source, grey, soft=True), [torch.Generator().manual_seed(1)], scheduler, 4, 4,
        is_whole=True,
    )  # fmt: skip
    assert begin.blend is not None
    drawn = torch.full_like(source, 1000.0)
    let_go = [(begin.blend(step, drawn)[0, 0, 0] == 1000).sum().item() for step in range(4)]
    assert let_go == [2, 3, 4, 5]


def test_each_picture_s_noise_is_its_own_seed_s(pipe: Any) -> None:
    together = ours(pipe, Scheduler.EULER, 0.5, Ground(SOURCE), seeds=(7, 9))
    for number, seed in enumerate((7, 9)):
        alone = ours(pipe, Scheduler.EULER, 0.5, Ground(SOURCE), seeds=(seed,))
        assert torch.allclose(together[number : number + 1], alone, atol=1e-5)


def test_a_black_source_at_full_strength_is_text_to_image(pipe: Any) -> None:
    scheduler = build_scheduler(Scheduler.EULER_TRAILING, OWN, STEPS)
    scheduler.set_timesteps(STEPS)
    generators = [torch.Generator().manual_seed(7)]
    words = from_noise(generators, (4, 8, 8), SOURCE, scheduler)
    generators = [torch.Generator().manual_seed(7)]
    ground = Ground(torch.zeros_like(SOURCE))
    begin = from_ground(ground, generators, scheduler, STEPS, STEPS, is_whole=True)
    assert begin.first == words.first == 0
    assert torch.allclose(begin.latents, words.latents, rtol=0.01)
