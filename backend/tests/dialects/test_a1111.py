"""`/sdapi/v1` with webuiapi; what other programs send is in test_recorded_calls.py."""

from __future__ import annotations

import asyncio
import base64
import io
import zlib
from typing import Any

import pytest
import webuiapi
from PIL import Image, PngImagePlugin

from app.core.dialect import basic_key
from app.core.errors import NotFound
from app.dialects.a1111.infotext import png_texts, read_infotext
from app.dialects.a1111.samplers import SOLVERS, joined, shown
from app.dialects.lora_tags import read_tags
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.request import Scheduler
from sdxl_contract.result import Phase, PreviewEvent, ProgressEvent
from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

API = "/sdapi/v1"


def basic(user: str, password: str = "") -> dict[str, str]:
    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


async def test_webuiapi_draws_looks_around_and_reads_back(
    served: Served, inference: InferenceDouble
) -> None:
    lora = await served.backend.upload(kohya_lora(), "Ink")

    def use() -> Any:
        api = webuiapi.WebUIApi(
            baseurl=f"{served.url}{API}", username="x", password=served.key, sampler="Euler a"
        )
        result = api.txt2img(
            prompt="a red apple <lora:Ink:0.5>",
            negative_prompt="blurred",
            seed=7,
            steps=20,
            cfg_scale=6,
            width=1024,
            height=768,
            batch_size=2,
            sampler_name="DPM++ 2M",
            scheduler="Karras",
        )
        options = api.get_options()
        api.set_options({"sd_model_checkpoint": options["sd_model_checkpoint"], "x": 1})
        return result, {
            "models": [model["model_name"] for model in api.get_sd_models()],
            "samplers": [sampler["name"] for sampler in api.get_samplers()],
            "loras": [one["name"] for one in api.get_loras()],
            "current": api.util_get_current_model(),
            "progress": api.get_progress()["progress"],
            "scripts": api.get_scripts(),
            "upscalers": api.get_upscalers()[0]["name"],
            "embeddings": api.get_embeddings(),
            "flags": api.get_cmd_flags(),
            "memory": api.get_memory(),
            "info": api.png_info(result.images[0]).info,
            "interrupt": api.interrupt(),
        }

    result, seen = await asyncio.to_thread(use)
    [request] = inference.requests
    assert (request.prompt, request.negative_prompt) == ("a red apple", "blurred")
    assert (request.steps, request.cfg, request.seed) == (20, 6.0, 7)
    assert (request.width, request.height, request.num_images) == (1024, 768, 2)
    assert request.scheduler is Scheduler.DPMPP_2M_KARRAS
    assert [(ref.sha256, ref.scale) for ref in request.loras] == [(lora["sha256"], 0.5)]
    assert [image.size for image in result.images] == [(1024, 768)] * 2
    info = result.info
    assert (info["all_seeds"], info["prompt"]) == ([7, 8], "a red apple <lora:Ink:0.5>")
    assert info["infotexts"][1] == (
        "a red apple <lora:Ink:0.5>\nNegative prompt: blurred\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6, Seed: 8, "
        f'Size: 1024x768, Model: sdxl, Lora hashes: "Ink: {lora["sha256"][:10]}"'
    )
    assert seen["models"] == ["sdxl"]
    assert seen["samplers"] == list(SOLVERS)
    assert seen["loras"] == ["Ink"]
    assert (seen["current"], seen["upscalers"], seen["progress"]) == ("sdxl", "None", 0)


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


async def test_webuiapi_draws_over_a_picture(served: Served, inference: InferenceDouble) -> None:
    def use() -> Any:
        api = webuiapi.WebUIApi(baseurl=f"{served.url}{API}", username="x", password=served.key)
        return api.img2img(
            images=[picture("red")],
            mask_image=picture("white"),
            prompt="a red apple",
            seed=7,
            steps=20,
            denoising_strength=0.5,
            resize_mode=1,
            mask_blur=8,
            inpainting_fill=1,
            inpaint_full_res=True,
            inpaint_full_res_padding=16,
            width=1024,
            height=768,
        )

    result = await asyncio.to_thread(use)
    [request] = inference.requests
    assert (request.strength, request.fit, request.seed) == (0.5, "crop", 7)
    assert request.image is not None
    assert request.mask is not None
    assert not request.mask.invert
    assert request.inpaint is not None
    told = request.inpaint
    assert (told.area, told.padding, told.blur, told.fill) == ("masked", 16, 8, "original")
    assert result.image.size == (1024, 768)
    http = served.backend.http
    plain = base64.b64encode(b"no picture").decode()
    wrong: list[dict[str, Any]] = [{}, {"init_images": [plain], "denoising_strength": 2}]
    wrong += [{"init_images": images} for images in ([], [5], [plain], [plain, plain])]
    for body in wrong:
        answer = await http.post(f"{API}/img2img", json={"prompt": "x", **body})
        assert answer.status_code == 422, body
    assert len(inference.requests) == 1


async def test_what_cannot_be_had_is_refused_rather_than_left_out(served: Served) -> None:
    await served.backend.upload(kohya_lora(), "Line Art")
    for body, status, hint in (
        ({"prompt": ""}, 400, "blank"),
        ({"enable_hr": True, "hr_scale": 3}, 422, "hr_scale"),
        ({"enable_hr": True, "hr_upscaler": "4x_foo"}, 422, "hr_upscaler"),
        ({"enable_hr": True, "hr_resize_x": 2048}, 422, "hr_resize_x"),
        ({"enable_hr": True, "denoising_strength": 2}, 422, "denoising_strength"),
        ({"enable_hr": True, "hr_checkpoint_name": "sd15"}, 422, "hr_checkpoint_name"),
        ({"enable_hr": True, "hr_prompt": "<lora:Line Art:1>"}, 422, "hr_prompt"),
        ({"script_name": "xyz"}, 422, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [{"enabled": True}]}}}, 422, "ADetailer"),
        ({"sampler_name": "PLMS"}, 404, "Sampler not found"),
        ({"sampler_name": "UniPC", "scheduler": "Karras"}, 422, "UniPC is offered with Automatic"),
        ({"override_settings": {"sd_model_checkpoint": "sd15"}}, 404, "Model not found"),
        ({"prompt": "x <lora:Line Arts:1>"}, 404, "Near: “Line Art”"),
        ({"steps": 150}, 422, "at most 100"),
        ({"cfg_scale": 30}, 422, "cfg_scale"),
        ({"batch_size": 9}, 422, "batch_size"),
        ({"width": 1001}, 422, "nearest"),
        ({"seed": 2**32}, 422, "seed"),
        ({"steps": "many"}, 422, "steps"),
    ):
        answer = await served.backend.http.post(f"{API}/txt2img", json={"prompt": "x"} | body)
        assert (answer.status_code, hint in answer.json()["detail"]) == (status, True), answer.text
    off: dict[str, Any] = {
        "alwayson_scripts": {"a": {"args": []}, "b": {"args": [{"enabled": False}]}}
    }
    answer = await served.backend.http.post(f"{API}/txt2img", json={"prompt": "x"} | off)
    assert answer.status_code == 200
    for path in ("img2img", "extra-single-image", "nowhere"):
        answer = await served.backend.http.post(f"{API}/{path}", json={})
        assert answer.json()["detail"]
        assert answer.status_code in (404, 422)


async def test_progress_and_interrupt_are_a_keys_own(
    served: Served, inference: InferenceDouble
) -> None:
    http = served.backend.http
    inference.gate.clear()
    preview = base64.b64encode(b"jpeg").decode()
    inference.event_pause = 0.55
    inference.events = [
        ProgressEvent(phase=Phase.DENOISE, step=7, steps=28, eta_seconds=3.0),
        PreviewEvent(image_base64=preview, step=7),
    ]
    drawing = asyncio.create_task(http.post(f"{API}/txt2img", json={"prompt": "x", "steps": 28}))
    other = basic("x", served.other_key)
    for _ in range(100):
        progress = (await http.get(f"{API}/progress")).json()
        if progress["current_image"]:
            break
        await asyncio.sleep(0.05)
    assert (progress["progress"], progress["eta_relative"]) == (0.25, 3.0)
    assert progress["current_image"] == preview
    assert (progress["state"]["sampling_step"], progress["state"]["job_count"]) == (7, 1)
    bare = await http.get(f"{API}/progress", params={"skip_current_image": "true"})
    assert bare.json()["current_image"] is None
    # Another user's key neither sees it nor stops it, and a content of another surface is no job.
    seen = (await http.get(f"{API}/progress", headers=other)).json()
    assert (seen["progress"], seen["state"]["job_count"]) == (0, 0)
    assert (await http.post(f"{API}/interrupt", headers=other)).status_code == 200
    body = {"prompt": "by the API itself"}
    await http.post("/api/v1/content/generate", json=body, headers={"Prefer": "respond-async"})
    assert (await http.get(f"{API}/progress")).json()["state"]["job_count"] == 1
    assert not drawing.done()
    assert (await http.post(f"{API}/interrupt")).json() == {}
    answer = await drawing
    inference.gate.set()
    assert answer.status_code == 500
    states = {
        item["prompt"]: item["status"]
        for item in (await http.get("/api/v1/content")).json()["items"]
    }
    assert states["x"] == "cancelled"
    assert states["by the API itself"] != "cancelled"


async def test_credentials_are_basic_ones_and_an_empty_one_is_none(served: Served) -> None:
    http = served.backend.http
    for headers, status in (
        (basic("x", served.key), 200),
        (basic(served.key), 200),
        ({"Authorization": "Basic "}, 401),
        (basic("x", "wrong"), 401),
        ({"Authorization": "Basic ???"}, 401),
        ({"Authorization": ""}, 401),
    ):
        answer = await http.get(f"{API}/options", headers=headers)
        assert answer.status_code == status, headers
        if status == 401:
            assert answer.headers["www-authenticate"].startswith("Basic ")
    # Browsers keep Basic credentials and send them along with any page's call.
    foreign = basic("x", served.key) | {"Origin": "https://evil.example"}
    assert (await http.post(f"{API}/interrupt", headers=foreign)).status_code == 403
    # Nowhere but here.
    for path in ("/api/v1/content", "/v1/models"):
        assert (await http.get(path, headers=basic("x", served.key))).status_code == 401


def test_a_basic_credentials_key() -> None:
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    assert basic_key(encoded("x:key")) == "key"
    assert basic_key(encoded("key:")) == "key"
    assert basic_key(encoded("key")) == "key"
    assert basic_key(encoded("x:a:b")) == "a:b"
    assert basic_key(encoded(":")) is None
    assert basic_key("no base64") == "no base64"


@pytest.mark.parametrize(
    ("sampler", "spacing", "found"),
    [
        (None, None, None),
        ("Euler", "Automatic", Scheduler.EULER),
        ("Euler a", None, Scheduler.EULER_A),
        ("DPM++ 2M", "karras", Scheduler.DPMPP_2M_KARRAS),
        ("DPM++ 2M Karras", "automatic", Scheduler.DPMPP_2M_KARRAS),
        ("DPM++ 2M Karras", "karras", Scheduler.DPMPP_2M_KARRAS),
        ("Euler", "SGM Uniform", Scheduler.EULER_TRAILING),
        ("Euler", "sgm_uniform", Scheduler.EULER_TRAILING),
        ("", "karras", Scheduler.EULER_KARRAS),
    ],
)
def test_sampler_and_scheduler_are_one_name_here(
    sampler: str | None, spacing: str | None, found: Scheduler | None
) -> None:
    assert joined(sampler, spacing) is found


def test_every_sampler_that_is_listed_is_offered_and_shown_again() -> None:
    for solver in SOLVERS:
        scheduler = joined(solver, None)
        assert scheduler is not None
        assert shown(scheduler) == (solver, "Automatic")
    assert shown(None)[0] == "Automatic"
    with pytest.raises(NotFound, match=r"^Sampler not found$"):
        joined("x" * 100, None)
    with pytest.raises(InvalidRequest, match="DDIM is offered with Automatic or SGM Uniform"):
        joined("DDIM", "karras")


@pytest.mark.parametrize(
    ("prompt", "plain", "loras"),
    [
        ("a <lora:x:0.5> b", "a b", [("x", 0.5)]),
        ("<lyco:x>a", "a", [("x", 1.0)]),
        ("a <lora:x:0.5:0.5>", "a", [("x", 0.5)]),
        ("a <lora:x:te=0.5:unet=0.5><lora:y:-1>", "a", [("x", 0.5), ("y", -1.0)]),
        ("a <hypernet:x:1>  b", "a <hypernet:x:1>  b", []),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2", []),
    ],
)
def test_tags_are_taken_out_of_the_prompt(
    prompt: str, plain: str, loras: list[tuple[str, float]]
) -> None:
    tagged = read_tags(prompt)
    assert (tagged.prompt, [(use.name, use.scale) for use in tagged.loras]) == (plain, loras)


@pytest.mark.parametrize(
    "tag", ["<lora::1>", "<lora:x:1:1:8>", "<lora:x:dyn=8>", "<lora:x:te=1:unet=0>", "<lora:x:30>"]
)
def test_a_tag_that_cannot_be_applied_as_written_is_refused(tag: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt: <lora:"):
        read_tags(f"a {tag}")


def test_a_pngs_texts_are_read_without_decoding_it() -> None:
    text = (
        'a red apple\nNegative prompt: dull\nSteps: 20, Sampler: Euler a, Lora hashes: "a: 1, b: 2"'
    )
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    info.add_itxt("title", "né", zip=True)
    info.add_text("packed", "x" * 9000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    for form in ("{}", "data:image/png;base64,{}"):
        texts = png_texts(form.format(base64.b64encode(file.getvalue()).decode()))
        assert texts == {"parameters": text, "title": "né", "packed": "x" * 9000}
    assert read_infotext(text) == {
        "Prompt": "a red apple",
        "Negative prompt": "dull",
        "Steps": "20",
        "Sampler": "Euler a",
        "Lora hashes": "a: 1, b: 2",
    }
    for wrong in ("", "abc", "%%%", base64.b64encode(b"GIF89a").decode()):
        with pytest.raises(InvalidRequest, match="image: must be a PNG"):
            png_texts(wrong)


def test_a_pngs_packed_text_is_bounded() -> None:
    packed = b"parameters\x00\x00" + zlib.compress(bytes(64 << 20))
    chunk = len(packed).to_bytes(4, "big") + b"zTXt" + packed + bytes(4)
    data = b"\x89PNG\r\n\x1a\n" + chunk + b"\xff\xff\xff\xff"
    texts = png_texts(base64.b64encode(data).decode())
    assert len(texts["parameters"]) <= 1 << 20
