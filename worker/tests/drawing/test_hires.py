"""A second pass is what one would do by hand with diffusers' own classes, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from sdxl_contract.errors import InvalidPrompt, InvalidRequest
from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import GenerateRequest
from sdxl_worker.assembly import Assembly
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.latents import from_image, scaled, to_image, unscaled
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.drawing.schedulers import build_scheduler
from sdxl_worker.run import Run
from testkit.worker import RunningWorker, hashes, png_of

BODY: dict[str, Any] = {
    "prompt": "a red apple", "steps": 4, "cfg": 4.0, "seed": 5, "width": 64, "height": 72,
}  # fmt: skip
LIMITS = ModelLimits(min_side=64, max_side=256, native_size=128, hires_max_side=512)


@pytest.fixture
def ready(worker: RunningWorker) -> Assembly:
    assert worker.engine._ready is not None
    return worker.engine._ready


def request_for(hires: dict[str, Any], **more: Any) -> GenerateRequest:
    return GenerateRequest.model_validate(BODY | {"hires": hires} | more)


def drawn(ready: Assembly, request: GenerateRequest, **options: Any) -> list[Image.Image]:
    calls = ModelCalls(ready.model.pipe, **options)
    return [one.image for one in Drawer(ready.model, calls=calls).draw(Run(request))]


@torch.no_grad()
def by_hand(ready: Assembly, request: GenerateRequest) -> Image.Image:
    """Draw, enlarge, draw over: the first pass and the second by diffusers' pipelines."""
    hires, own = request.hires, ready.model.pipe
    assert hires is not None
    zeros = {"force_zeros_for_empty_prompt": own.config.force_zeros_for_empty_prompt}
    size = hires.size(request.size(LIMITS), 8)
    steps = hires.steps or request.steps
    whole = int(steps / min(hires.strength, 0.999))
    first: Any = StableDiffusionXLPipeline(**own.components, add_watermarker=False, **zeros)
    second: Any = StableDiffusionXLImg2ImgPipeline(
        **own.components, add_watermarker=False, requires_aesthetics_score=False, **zeros
    )
    for pipe, name in ((first, request.scheduler), (second, hires.scheduler or request.scheduler)):
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = build_scheduler(name, own.scheduler, whole)
    latents: Tensor = first(
        prompt=request.prompt, negative_prompt=request.negative_prompt or None,
        width=request.width, height=request.height, num_inference_steps=request.steps,
        guidance_scale=request.cfg, generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images  # fmt: skip
    if hires.upscaler == "latent":
        latents = torch.nn.functional.interpolate(
            latents, (size[1] // 8, size[0] // 8), mode="bilinear", align_corners=False
        )
    else:
        image = to_image(own.vae.decode(unscaled(latents, own.vae)).sample[0])
        pixels = from_image(image.resize(size, Image.Resampling.LANCZOS))
        latents = scaled(own.vae.encode(pixels).latent_dist.mean, own.vae)
    latents = second(
        prompt=request.prompt if hires.prompt is None else hires.prompt,
        negative_prompt=hires.negative_prompt or request.negative_prompt or None,
        image=latents, strength=(steps + 0.5) / whole if whole > steps else 1.0,
        num_inference_steps=whole, guidance_scale=hires.cfg or request.cfg,
        generator=torch.Generator().manual_seed(5), output_type="latent",
    ).images  # fmt: skip
    return to_image(own.vae.decode(unscaled(latents, own.vae)).sample[0])


SECOND_PASSES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "lanczos": {"upscaler": "lanczos", "strength": 0.4, "steps": 2},
    "its own words, guidance and sampler": {
        "scale": 1.5, "prompt": "a green pear", "negative_prompt": "blurry", "cfg": 7,
        "scheduler": "dpmpp_2m_karras", "strength": 0.5,
    },
    "all of it": {"strength": 1.0, "steps": 3},
    "two stages a step": {"scheduler": "heun", "steps": 3, "scale": 1.5},
}  # fmt: skip


@pytest.mark.parametrize("what", SECOND_PASSES)
def test_a_second_pass_is_what_diffusers_draws_by_hand(ready: Assembly, what: str) -> None:
    request = request_for(SECOND_PASSES[what])
    [image] = drawn(ready, request)
    assert request.hires is not None
    scale = request.hires.scale
    assert image.size == (int(64 * scale), int(72 * scale) // 8 * 8)
    assert image.tobytes() == by_hand(ready, request).tobytes()


def test_every_field_of_a_second_pass_shows() -> None:
    """Else the comparison above would not see that one is left out."""
    base = request_for({})
    assert base.hires is not None
    assert (base.hires.drawn_steps(4), base.hires.schedule(4)) == (4, 5)
    changed = request_for({"steps": 10, "strength": 0.5})
    assert changed.hires is not None
    assert (changed.hires.drawn_steps(4), changed.hires.schedule(4)) == (10, 20)
    assert (base.all_steps(), changed.all_steps()) == (8, 14)
    whole = request_for({"strength": 1.0, "steps": 100})
    assert whole.hires is not None
    assert whole.hires.schedule(4) == 100


def test_each_picture_of_several_is_its_seed_s(ready: Assembly) -> None:
    two = drawn(ready, request_for({"scale": 1.5}, num_images=2))
    [alone] = drawn(ready, request_for({"scale": 1.5}, seed=6))
    assert two[1].tobytes() == alone.tobytes() != two[0].tobytes()


def test_a_large_picture_is_tiled_by_its_size_and_leaves_no_trace(ready: Assembly) -> None:
    request = request_for({"scale": 2.5, "steps": 1})  # 160x180: beyond the VAE's tiles of 128
    [whole] = drawn(ready, request)
    [tiled] = drawn(ready, request, whole_pixels=128**2)
    assert tiled.tobytes() != whole.tobytes()
    assert drawn(ready, request, whole_pixels=160 * 176)[0].tobytes() == whole.tobytes()
    ready.structure.verify()
    assert ready.model.pipe.vae.use_tiling is False


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "too large": ({"scale": 4.0}, {"width": 256}, "hires.scale"),
    "no larger": ({"scale": 1.01}, {}, "hires.scale"),
    "no such upscaler": ({"upscaler": "4x-magic"}, {}, "hires.upscaler"),
    "a retired sampler": ({"scheduler": "lms"}, {}, "hires.scheduler"),
    "too long a prompt": ({"prompt": "x" * 4001}, {}, "hires.prompt"),
    "too much work": (
        {"steps": 100, "scale": 4.0}, {"steps": 100, "width": 128, "height": 128, "num_images": 8},
        "hires.steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_worker_cannot_do_is_refused_by_field(what: str) -> None:
    hires, more, field = REFUSED[what]
    with pytest.raises((InvalidRequest, InvalidPrompt)) as caught:
        request_for(hires, **more).check_limits(LIMITS)
    assert (caught.value.details or {})["field"] == field
    request_for({"scale": 2.0}).check_limits(LIMITS)


@pytest.mark.parametrize(
    "hires",
    [
        {"scale": 1.0}, {"scale": 4.1}, {"scale": True}, {"scale": float("nan")},
        {"strength": 0.0}, {"strength": 1.1}, {"steps": -1}, {"steps": 101}, {"cfg": 0.5},
        {"upscaler": ""}, {"upscaler": "x" * 201}, {"scheduler": "none"}, {"what": 1}, "2x",
        {"strength": 0.003},  # a schedule of more steps than there are noise levels
    ],
)  # fmt: skip
def test_a_second_pass_has_ranges(hires: Any) -> None:
    with pytest.raises(ValidationError):
        request_for(hires)


def test_a_second_pass_belongs_to_words_alone() -> None:
    with pytest.raises(ValidationError, match="from words"):
        request_for({}, image={"url": "https://a.example/a.png"})


def test_over_http_the_steps_that_run_are_counted_and_told(
    client: httpx2.Client, worker: RunningWorker
) -> None:
    weights = hashes(worker.engine)
    hires = {"scale": 1.5, "steps": 2, "strength": 0.5, "prompt": "a pear, ripe", "cfg": 3}
    headers = {"Accept": "text/event-stream"}
    text = client.post("/generate-image", json=BODY | {"hires": hires}, headers=headers).text
    events = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
    steps = [e for e in events if e.get("type") == "progress" and e["step"]]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6]
    assert {e["steps"] for e in steps} == {6}
    assert steps[-1]["eta_seconds"] == 0
    [result] = [e["result"] for e in events if e.get("type") == "result"]
    assert result["image_size"] == [96, 104]
    assert result["metadata"]["first_size"] == [64, 72]
    assert result["structure_clean"] is True
    facts = png_of(result).info["parameters"].splitlines()[-1]
    for fact in (
        "Size: 64x72", "Denoising strength: 0.5", "Hires upscale: 1.5", "Hires steps: 2",
        "Hires upscaler: Latent", "Hires CFG Scale: 3", 'Hires prompt: "a pear, ripe"',
    ):  # fmt: skip
        assert fact in facts
    assert hashes(worker.engine) == weights
