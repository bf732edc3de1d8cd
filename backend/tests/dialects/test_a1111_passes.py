"""`/sdapi/v1` where a picture is enlarged: by a second pass, or as it is."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import pytest
import webuiapi
from PIL import Image

from sdxl_contract.limits import ModelLimits, UpscalerInfo
from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble

API = "/sdapi/v1"
UPSCALER = UpscalerInfo(name="4x_Pear", sha256="0" * 64, architecture="esrgan", scale=4, bytes=9)


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    return file.getvalue()


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


@pytest.fixture
def provided(inference: InferenceDouble) -> None:
    """The worker has an upscaler, before any backend looks at it."""
    inference.limits = ModelLimits(upscalers=(UPSCALER,))


async def test_webuiapi_enlarges_a_picture(
    provided: None, served: Served, inference: InferenceDouble
) -> None:
    def use() -> Any:
        api = webuiapi.WebUIApi(baseurl=f"{served.url}{API}", username="x", password=served.key)
        names = [one["name"] for one in api.get_upscalers()]
        return names, api.extra_single_image(
            image=Image.new("RGB", (64, 64), "teal"), upscaler_1="4x_Pear", upscaling_resize=3
        )

    names, result = await asyncio.to_thread(use)
    assert names == ["None", "Lanczos", "4x_Pear"]
    assert result.image.size == (192, 192)
    [request] = inference.requests
    assert request.upscale is not None
    assert (request.upscale.upscaler, request.upscale.scale) == ("4x_Pear", 3)
    assert request.image is not None
    assert request.prompt == ""
    http = served.backend.http
    content = (await http.get("/api/v1/content")).json()["items"][0]
    again = await http.post(f"/api/v1/content/{content['id']}/replay")
    assert again.status_code in (200, 202), again.text
    image = as_base64(b"no picture")
    for body, status, hint in (
        ({"image": image}, 422, "not a PNG"),
        ({"image": None}, 422, "image"),
        ({"image": image, "gfpgan_visibility": 1}, 422, "gfpgan_visibility"),
        ({"image": as_base64(png()), "upscaler_1": "4x_Plum"}, 422, "upscaler_1"),
        ({"image": as_base64(png()), "upscaling_resize": 20}, 422, "upscaling_resize"),
    ):
        answer = await http.post(f"{API}/extra-single-image", json=body)
        assert (answer.status_code, hint in answer.json()["detail"]) == (status, True), answer.text
