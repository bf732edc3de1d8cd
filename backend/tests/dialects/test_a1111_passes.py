"""`/sdapi/v1` where a picture is enlarged: a second pass."""

from __future__ import annotations

import asyncio
from typing import Any

import webuiapi

from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble

API = "/sdapi/v1"


async def test_webuiapi_draws_a_second_pass(served: Served, inference: InferenceDouble) -> None:
    def use() -> Any:
        api = webuiapi.WebUIApi(baseurl=f"{served.url}{API}", username="x", password=served.key)
        return api.txt2img(
            prompt="a red apple", seed=7, steps=20, width=1024, height=768, enable_hr=True,
            hr_scale=1.5, hr_upscaler=webuiapi.HiResUpscaler.Latent, hr_second_pass_steps=8,
            denoising_strength=0.6,
        )  # fmt: skip

    result = await asyncio.to_thread(use)
    [request] = inference.requests
    told = request.hires
    assert told is not None
    assert (told.scale, told.upscaler, told.steps, told.strength) == (1.5, "latent", 8, 0.6)
    assert (told.prompt, told.cfg, told.scheduler) == (None, None, None)
    assert result.images[0].size == (1536, 1152)
    assert (result.info["width"], result.info["height"]) == (1024, 768)
    assert (
        "Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 8, Hires upscaler: Latent"
    ) in result.info["infotexts"][0]
    body = {
        "prompt": "x", "width": 1152, "height": 864, "enable_hr": True, "hr_resize_x": 1536,
        "hr_upscaler": "Lanczos", "hr_prompt": "y", "hr_sampler_name": "Euler a",
        "hr_cfg": 4,
    }  # fmt: skip
    answer = await served.backend.http.post(f"{API}/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    request = inference.requests[-1]
    assert request.hires is not None
    assert request.hires.size((1152, 864), 8) == (1536, 1152)
    assert (request.hires.upscaler, request.hires.strength) == ("lanczos", 0.75)
    assert (request.hires.prompt, request.hires.cfg) == ("y", 4)
    assert request.hires.scheduler == "euler_a"
