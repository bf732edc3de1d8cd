"""The denoising loop gives diffusers' own bits, for every sampler and whatever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from torch import Tensor

from sdxl_contract.request import RETIRED_SCHEDULERS, GenerateRequest, Scheduler
from sdxl_worker.drawing.denoising import Denoising, StepInputs, start_noise
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.prompts import Conditioning
from sdxl_worker.drawing.schedulers import build_scheduler, scheduler_eta
from sdxl_worker.run import Run
from testkit.loras.making import TE1_WIDTH, TE2_WIDTH, tiny_model
from testkit.worker import RunningWorker

pytestmark = pytest.mark.process


OWN: Any = EulerDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
)
# What every case differs from in one thing or two.
CASE: dict[str, Any] = {
    "steps": 3, "guidance": 5.5, "rescale": 0.0, "size": (64, 64), "seeds": [7], "windows": 1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no guidance": {"guidance": 1.0},
    "rescaled": {"guidance": 4.0, "rescale": 0.7},
    "not square": {"size": (96, 64)},
    "three pictures": {"seeds": [7, 8, 2**32 - 1]},
    "long text": {"windows": 3},
    "one step": {"steps": 1},
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    model = tiny_model(torch.float32, widths=(32, 32, 32), depths=(1, 1, 1))
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    made = StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=model.text_encoder, text_encoder_2=model.text_encoder_2,
        tokenizer=None, tokenizer_2=None, unet=model.unet, scheduler=OWN,
        add_watermarker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def conditioning(windows: int, dtype: torch.dtype) -> Conditioning:
    drawn = torch.Generator().manual_seed(11)
    embeds = [
        torch.randn(1, 77 * windows, TE1_WIDTH + TE2_WIDTH, generator=drawn).to(dtype) for _ in "pn"
    ]
    pooled = [torch.randn(1, TE2_WIDTH, generator=drawn).to(dtype) for _ in "pn"]
    return Conditioning(embeds[0], pooled[0], embeds[1], pooled[1])


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def theirs(pipe: Any, scheduler: Any, eta: float, case: dict[str, Any], **more: Any) -> Tensor:
    count, told = len(case["seeds"]), conditioning(case["windows"], pipe.unet.dtype)
    pipe.scheduler = scheduler
    found: Tensor = pipe(
        prompt_embeds=told.prompt.expand(count, -1, -1),
        pooled_prompt_embeds=told.pooled.expand(count, -1),
        negative_prompt_embeds=told.negative_prompt.expand(count, -1, -1),
        negative_pooled_prompt_embeds=told.negative_pooled.expand(count, -1),
        width=case["size"][0], height=case["size"][1], num_inference_steps=case["steps"],
        guidance_scale=case["guidance"], guidance_rescale=case["rescale"], eta=eta,
        generator=generators(case["seeds"]), output_type="latent", **more,
    ).images  # fmt: skip
    return found


def ours(
    pipe: Any, scheduler: Any, eta: float, case: dict[str, Any], attached: Any = None, **more: Any
) -> Tensor:
    told, drawn = conditioning(case["windows"], pipe.unet.dtype), generators(case["seeds"])
    scheduler.set_timesteps(case["steps"])
    side = pipe.vae_scale_factor
    shape = (4, case["size"][1] // side, case["size"][0] // side)

    def predict(inputs: StepInputs, attached: Mapping[str, Any]) -> Tensor:
        found: Tensor = pipe.unet(
            inputs.sample, inputs.timestep, encoder_hidden_states=inputs.embeds,
            timestep_cond=inputs.timestep_cond,
            added_cond_kwargs={"text_embeds": inputs.pooled, "time_ids": inputs.time_ids},
            **attached,
        ).sample  # fmt: skip
        return found

    return Denoising(
        predict=predict, scheduler=scheduler, conditioning=told, size=case["size"],
        latents=start_noise(drawn, shape, told.prompt) * scheduler.init_noise_sigma,
        guidance=case["guidance"], rescale=case["rescale"], eta=eta, generators=drawn, **more,
    ).run()  # fmt: skip


def both(pipe: Any, name: Scheduler, case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    made = [build_scheduler(name, OWN, case["steps"]) for _ in "ab"]
    eta = scheduler_eta(name)
    return theirs(pipe, made[0], eta, case), ours(pipe, made[1], eta, case)


@pytest.mark.parametrize("name", [n for n in Scheduler if n not in RETIRED_SCHEDULERS])
def test_every_sampler_gives_diffusers_own_bits(pipe: Any, name: Scheduler) -> None:
    expected, found = both(pipe, name, CASE | {"seeds": [7, 9], "size": (32, 64)})

    assert torch.isfinite(expected).all()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_whatever_is_asked_for_the_bits_are_diffusers_own(
    pipe: Any, case: str, dtype: torch.dtype
) -> None:
    parts = (pipe.unet, pipe.text_encoder_2)
    for part in parts:
        part.to(dtype)
    try:
        for name in (Scheduler.EULER, Scheduler.DPMPP_2M_SDE):
            expected, found = both(pipe, name, CASE | CASES[case])
            assert torch.equal(found, expected), name
            assert found.dtype == expected.dtype
    finally:
        for part in parts:
            part.to(torch.float32)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_samplers_that_put_noise_back_take_it_from_each_picture_s_own_generator(
    pipe: Any, eta: float
) -> None:
    case = CASE | {"seeds": [1, 2]}
    for name in (Scheduler.DDIM, Scheduler.TCD):
        made = [build_scheduler(name, OWN, 3) for _ in "ab"]
        assert torch.equal(ours(pipe, made[1], eta, case), theirs(pipe, made[0], eta, case))


def test_a_loop_that_differed_in_anything_would_be_found(pipe: Any) -> None:
    made = [build_scheduler(Scheduler.EULER, OWN, 3) for _ in range(6)]
    expected = theirs(pipe, made[0], 0.0, CASE)
    changes: list[dict[str, Any]] = [
        {"guidance": 5.4}, {"rescale": 0.1}, {"seeds": [8]}, {"size": (64, 96)}, {"steps": 4}
    ]  # fmt: skip
    for other, change in enumerate(changes, 1):
        found = ours(pipe, made[other], 0.0, CASE | change)
        assert not torch.equal(found.sum(), expected.sum()), change


@pytest.mark.parametrize(
    "name", [Scheduler.EULER, Scheduler.HEUN, Scheduler.DPMPP_2M, Scheduler.DDIM]
)
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_a_run_that_starts_later_is_diffusers_image_to_image(
    pipe: Any, name: Scheduler, strength: float
) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    other: Any = StableDiffusionXLImg2ImgPipeline(
        **pipe.components,
        requires_aesthetics_score=False, add_watermarker=False,
    )  # fmt: skip
    other.set_progress_bar_config(disable=True)
    steps, told = 8, conditioning(1, torch.float32)
    side = 64 // pipe.vae_scale_factor
    source = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    made = [build_scheduler(name, OWN, steps) for _ in "ab"]
    other.scheduler = made[0]
    expected = other(
        image=source, strength=strength, num_inference_steps=steps, guidance_scale=5.5,
        prompt_embeds=told.prompt, pooled_prompt_embeds=told.pooled,
        negative_prompt_embeds=told.negative_prompt,
        negative_pooled_prompt_embeds=told.negative_pooled,
        generator=generators([7]), output_type="latent",
    ).images  # fmt: skip

    scheduler, drawn = made[1], generators([7])
    scheduler.set_timesteps(steps)
    first = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    # Before the noise is added, which asks where the run begins.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    noise = start_noise(drawn, (4, side, side), source)
    noised = scheduler.add_noise(source, noise, scheduler.timesteps[first : first + 1])
    size = (64, 64)
    found = Denoising(
        predict=lambda i, extra: pipe.unet(
            i.sample, i.timestep, encoder_hidden_states=i.embeds,
            added_cond_kwargs={"text_embeds": i.pooled, "time_ids": i.time_ids},
        ).sample,
        scheduler=scheduler, latents=noised, conditioning=told, size=size, guidance=5.5,
        generators=drawn, first=first,
    ).run()  # fmt: skip
    assert torch.equal(found, expected)


def test_what_is_attached_reaches_the_unet_and_embeddings_may_change_from_step_to_step(
    pipe: Any,
) -> None:
    seen: list[tuple[float, float]] = []
    told = [conditioning(1, torch.float32), conditioning(2, torch.float32)]

    def predict(inputs: StepInputs, attached: Any) -> Tensor:
        seen.append((attached["strength"], float(inputs.embeds.shape[1])))
        return inputs.sample * 0.5

    scheduler = build_scheduler(Scheduler.EULER, OWN, 4)
    scheduler.set_timesteps(4)
    Denoising(
        predict=predict, scheduler=scheduler, conditioning=told[0], size=(32, 32),
        latents=torch.ones(2, 4, 8, 8), guidance=3.0,
        attach=lambda inputs: {"strength": inputs.index / 4},
        conditioning_at=lambda index: told[index % 2],
    ).run()  # fmt: skip
    assert seen == [(0.0, 77.0), (0.25, 154.0), (0.5, 77.0), (0.75, 154.0)]


def test_the_blend_has_the_last_word_of_each_step_and_the_hook_sees_it(pipe: Any) -> None:
    kept = torch.full((1, 4, 8, 8), 3.0)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    seen: list[Tensor] = []
    scheduler = build_scheduler(Scheduler.EULER, OWN, 3)
    scheduler.set_timesteps(3)
    found = Denoising(
        predict=lambda inputs, _: torch.zeros_like(inputs.sample), scheduler=scheduler,
        conditioning=conditioning(1, torch.float32), size=(32, 32),
        latents=torch.ones(1, 4, 8, 8), guidance=1.0,
        blend=lambda _, latents: mask * latents + (1 - mask) * kept,
        on_step=lambda _, latents: seen.append(latents),
    ).run()  # fmt: skip
    assert len(seen) == 3
    assert all(torch.equal(one[..., 4:], kept[..., 4:]) for one in seen)
    assert torch.equal(found[..., :4], torch.ones(1, 4, 8, 4))


def test_a_run_that_is_stopped_leaves_nothing_on_the_pipeline(pipe: Any) -> None:
    class Stop(Exception):
        pass

    def stop(index: int, _: Tensor) -> None:
        if index == 1:
            raise Stop

    before = dict(vars(pipe)), pipe.scheduler, pipe.unet.attn_processors
    made = build_scheduler(Scheduler.EULER, OWN, 4)
    with pytest.raises(Stop):
        ours(pipe, made, 0.0, CASE, on_step=stop)
    assert (dict(vars(pipe)), pipe.scheduler, pipe.unet.attn_processors) == before


def draw(drawer: Drawer, request: GenerateRequest, size: tuple[int, int], seeds: list[int]) -> Any:
    width, height = size
    wanted = {"width": width, "height": height, "seed": seeds[0], "num_images": len(seeds)}
    return drawer.draw(Run(request.model_copy(update=wanted)))


@pytest.mark.parametrize(
    ("name", "size"), [(Scheduler.DEFAULT, (64, 64)), (Scheduler.EULER_A, (64, 96))]
)
def test_the_demo_model_s_pictures_are_diffusers_own(
    worker: RunningWorker, name: Scheduler, size: tuple[int, int]
) -> None:
    ready = worker.engine._ready
    assert ready is not None
    whole: Callable[..., Any] = ready.model.pipe
    request = GenerateRequest(
        prompt="a red apple, white background", negative_prompt="dark", steps=2, scheduler=name
    )
    found = draw(ready.drawer, request, size, [5])[0].image
    pipe: Any = whole
    pipe.scheduler = build_scheduler(name, ready.drawer.own_scheduler, 2)
    try:
        expected = whole(
            request.prompt, negative_prompt=request.negative_prompt, width=size[0], height=size[1],
            num_inference_steps=2, guidance_scale=request.cfg,
            generator=torch.Generator("cpu").manual_seed(5),
        ).images[0]  # fmt: skip
    finally:
        pipe.scheduler = ready.drawer.own_scheduler
    assert found.size == size
    assert found.tobytes() == expected.tobytes()
