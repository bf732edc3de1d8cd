"""`/sdapi/v1` where a picture is enlarged: by a second pass, or as it is."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import pytest
import webuiapi
from PIL import Image

from sdxl_contract.limits import (
    AdapterInfo,
    AdapterKind,
    ControlInfo,
    ControlKind,
    ModelLimits,
    UpscalerInfo,
)
from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import safetensors_bytes

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


@pytest.fixture
def controlled(inference: InferenceDouble) -> None:
    """The worker has control networks, before any backend looks at it."""
    one, union = ControlKind.CONTROLNET, ControlKind.CONTROLNET_UNION
    inference.limits = ModelLimits(
        controls=(
            ControlInfo(name="lines", sha256="0" * 64, kind=one, bytes=9),
            ControlInfo(name="union", sha256="1" * 64, kind=union, types=("normal",), bytes=9),
        ),
        adapters=(
            AdapterInfo(
                name="plus",
                sha256="2" * 64,
                kind=AdapterKind.PLUS,
                encoder_sha256="3" * 64,
                bytes=9,
            ),
        ),
    )


async def test_webuiapi_asks_what_there_is_to_hold_a_drawing(
    controlled: None, served: Served
) -> None:
    def use() -> dict[str, Any]:
        api = webuiapi.WebUIApi(baseurl=f"{served.url}{API}", username="x", password=served.key)
        teal = Image.new("RGB", (64, 48), "teal")
        maps = api.controlnet_detect([teal], module="none")
        half = teal.copy()
        half.paste("white", (0, 0, 32, 48))
        [edges] = api.controlnet_detect([half], module="canny", processor_res=96).images
        assert edges.size == (128, 96)
        columns = [x for x in range(128) if edges.convert("L").getpixel((x, 48))]
        # One line, where the colours meet.
        assert columns in ([63], [64])
        return {
            "version": api.controlnet_version(),
            "models": api.controlnet_model_list(),
            "modules": api.controlnet_module_list(),
            "detected": [one.getpixel((3, 3)) for one in maps.images],
        }

    assert await asyncio.to_thread(use) == {
        "version": 2,
        "models": ["lines [00000000]", "union [11111111]", "plus [22222222]"],
        "modules": ["none", "canny", "ip-adapter-auto"],
        "detected": [(0, 128, 128)],
    }
    http = served.backend.http
    types = (await http.get("/controlnet/control_types")).json()["control_types"]
    assert types["Canny"]["model_list"] == ["None", "lines [00000000]"]
    assert types["NormalMap"]["default_model"] == "union [11111111]"
    assert types["IP-Adapter"]["default_option"] == "ip-adapter-auto"
    assert types["All"]["model_list"][0] == "None"
    assert (await http.get("/controlnet/settings")).json() == {"control_net_unit_count": 4}
    details = (await http.get("/controlnet/module_list")).json()["module_detail"]
    assert [one and one["value"] for one in details["canny"]["sliders"]] == [None, 100, 200]
    canny = {"controlnet_module": "canny", "controlnet_input_images": [as_base64(png())]}
    for body, field in (
        ({"controlnet_module": "openpose"}, "controlnet_module"),
        (canny | {"controlnet_processor_res": 63}, "controlnet_processor_res"),
        (canny | {"controlnet_processor_res": 1e9}, "controlnet_processor_res"),
        (canny | {"controlnet_threshold_b": 2001}, "controlnet_threshold_b"),
        (canny | {"controlnet_threshold_a": 1e300}, "controlnet_threshold_a"),
        (canny | {"controlnet_threshold_a": 201}, "low above high"),
        (canny | {"controlnet_threshold_a": "x"}, "controlnet_threshold_a"),
        (canny | {"controlnet_input_images": [as_base64(b"no picture")]}, "The file"),
        ({"controlnet_input_images": []}, "controlnet_input_images"),
        ({"controlnet_input_images": [as_base64(png())] * 5}, "controlnet_input_images"),
        ({"controlnet_input_images": [as_base64(b"no picture")]}, "The file"),
        ({"controlnet_input_images": [7]}, "controlnet_input_images[0]"),
    ):
        refused = await http.post("/controlnet/detect", json=body)
        assert (refused.status_code, field in refused.json()["detail"]) == (422, True), refused.text


async def test_webuiapi_s_controlnet_units_hold_a_drawing(
    controlled: None, served: Served, inference: InferenceDouble
) -> None:
    teal, red = (Image.new("RGB", (64, 64), colour) for colour in ("teal", "red"))
    units = [
        webuiapi.ControlNetUnit(
            image=teal, module="canny", model="lines [0123abcd]", weight=0.5, threshold_a=50,
            threshold_b=150, guidance_end=0.6,
        ),
        webuiapi.ControlNetUnit(image=teal, model="gone", enabled=False),
        webuiapi.ControlNetUnit(image=red, model="lines"),
        webuiapi.ControlNetUnit(
            image=red, module="ip-adapter_clip_h", model="plus", weight=0.6, guidance_start=0.1
        ),
    ]  # fmt: skip

    told: list[str] = []

    def use() -> None:
        api = webuiapi.WebUIApi(baseurl=f"{served.url}{API}", username="x", password=served.key)
        # The client writes the units into its own default, for all later calls.
        scripts: dict[str, Any] = {"alwayson_scripts": {}}
        drawn = api.txt2img(prompt="an apple", controlnet_units=units, **scripts)
        told.append(drawn.info["infotexts"][0])
        scripts = {"alwayson_scripts": {}}
        api.img2img(prompt="an apple", images=[red], controlnet_units=[units[2]], **scripts)

    await asyncio.to_thread(use)
    words, over = inference.requests
    assert (
        'ControlNet 0: "Module: canny, Model: lines, Threshold A: 50, Threshold B: 150, '
        'Weight: 0.5, Guidance Start: 0, Guidance End: 0.6", ControlNet 1: "'
    ) in told[0]
    assert 'ControlNet 2: "Module: ip-adapter, Model: plus, Weight: 0.6' in told[0]
    one, two = words.controls
    assert (one.model, one.scale, one.start, one.end) == ("lines", 0.5, 0.0, 0.6)
    assert one.canny is not None
    assert (one.canny.low, one.canny.high) == (50, 150)
    assert (two.model, two.scale, two.canny) == ("lines", 1.0, None)
    [look] = words.references
    assert (look.adapter, look.scale, look.start) == ("plus", 0.6, 0.1)
    assert over.image is not None
    assert look.image.sha256 == over.image.sha256
    assert over.controls[0].image.sha256 == two.image.sha256 == over.image.sha256
    http, picture = served.backend.http, as_base64(png())
    union = {"model": "union", "image": {"image": picture}, "union_control_type": "Normal Map"}
    sent: dict[str, Any] = {"prompt": "x", "alwayson_scripts": {"ControlNet": {"args": [union]}}}
    answer = await http.post(f"{API}/txt2img", json=sent)
    assert answer.status_code == 200, answer.text
    assert inference.requests[-1].controls[0].type == "normal"
    # In a drawing over a picture that one is meant where a unit brings none.
    unit: dict[str, Any] = {"model": "lines", "module": "canny", "threshold_a": -1}
    sent = {"prompt": "x", "init_images": [picture], "alwayson_scripts": {"controlnet": [unit]}}
    answer = await http.post(f"{API}/img2img", json=sent)
    assert answer.status_code == 200, answer.text
    held = inference.requests[-1]
    assert held.image is not None
    assert held.controls[0].image.sha256 == held.image.sha256


async def test_units_that_cannot_be_had_are_refused_by_their_place(
    controlled: None, served: Served, inference: InferenceDouble
) -> None:
    unit: dict[str, Any] = {"model": "lines", "image": as_base64(png())}
    off = {"enabled": False}
    for wrong, hint in (
        ({"model": "None"}, "args[1].model"),
        ({"model": "depth"}, "args[1].model: this worker has no control network"),
        ({"module": "depth_midas"}, "args[1].module"),
        ({"module": "ip-adapter-auto"}, "args[1].model: this worker has no adapter"),
        ({"weight": 3}, "args[1].weight"),
        ({"weight": "much"}, "args[1].weight"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, "args[1].guidance_end"),
        ({"module": "canny", "threshold_a": 9, "threshold_b": 1}, "args[1].threshold_a"),
        ({"control_mode": "My prompt is more important"}, "args[1].control_mode"),
        ({"hr_option": "High res only"}, "args[1].hr_option"),
        ({"mask": "abcd"}, "args[1].mask"),
        ({"image": None}, "args[1].image"),
        ({"image": as_base64(b"no picture")}, "not a PNG"),
    ):
        body = {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": [off, unit | wrong]}}}
        answer = await served.backend.http.post(f"{API}/txt2img", json=body)
        assert answer.status_code == 422, (wrong, answer.text)
        assert hint in answer.json()["detail"], (wrong, answer.text)
    for args, expected in (([unit] * 5, 422), (7, 200), ([7, None], 200), ([off] * 9, 200)):
        body = {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": args}}}
        answer = await served.backend.http.post(f"{API}/txt2img", json=body)
        assert answer.status_code == expected, (args, answer.text)
    assert all(not request.controls for request in inference.requests)


async def test_an_embedding_is_meant_by_its_name_in_either_prompt(
    served: Served, inference: InferenceDouble
) -> None:
    http = served.backend.http
    http.headers["Authorization"] = f"Bearer {served.key}"
    data = safetensors_bytes({"clip_l": (3, 768), "clip_g": (3, 1280)})
    for name, file in (("negXL_D", data), ("again", data)):
        kept = await http.post("/api/v1/embeddings", files={"file": file}, data={"name": name})
        assert kept.status_code in (200, 201), kept.text
    listed = (await http.get(f"{API}/embeddings")).json()
    assert listed["skipped"] == {}
    assert {name: one["vectors"] for name, one in listed["loaded"].items()} == {"negXL_D": 3}
    assert listed["loaded"]["negXL_D"]["shape"] == 2048
    body = {"prompt": "a fig", "negative_prompt": "(NegXL_d:1.2), blur", "steps": 2}
    answer = await http.post(f"{API}/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    [used] = inference.requests[-1].embeddings
    assert used.token == "negXL_D"
    info = json.loads(answer.json()["info"])
    assert f'TI hashes: "negXL_D: {kept.json()["sha256"][:12]}"' in info["infotexts"][0]
