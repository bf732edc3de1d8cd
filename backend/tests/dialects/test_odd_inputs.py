"""What clients of each dialect send beside the usual: drawn as meant, or refused by its name."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx2
from PIL import Image

from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


RED = base64.b64encode(png()).decode()
OPENAI, TXT2IMG, IMG2IMG = "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
REPLICATE = "/replicate/v1/models/stability-ai/sdxl/predictions"
FAL = "/fal/run/fal-ai/fast-sdxl"


def field_of(path: str, answer: httpx2.Response) -> str:
    """The field that an error names, where the dialect's shape has it."""
    told = answer.json()
    if path == OPENAI:
        return str(told["error"]["param"])
    if path == REPLICATE:
        return str(told["field"])
    if path == FAL:
        place = told["detail"][0]["loc"] if isinstance(told["detail"], list) else [told["detail"]]
        return ".".join(map(str, place))
    return str(told["detail"])


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    (OPENAI, {"n": 0}, 400, "n"),
    (OPENAI, {"n": "2"}, 400, "n"),
    (OPENAI, {"size": "1024 x 1024"}, 400, "size"),
    (OPENAI, {"size": 1024}, 400, "size"),
    (OPENAI, {"quality": "ultra"}, 400, "quality"),
    (OPENAI, {"response_format": "json"}, 400, "response_format"),
    (OPENAI, {"output_format": "gif"}, 400, "output_format"),
    (OPENAI, {"loras": [{"name": "Ink", "weight": 1}]}, 400, "loras[0].weight"),
    (OPENAI, {"prompt": ["a"]}, 400, "prompt"),
    (TXT2IMG, {"batch_size": 4, "n_iter": 4}, 422, "batch_size: must be at most 8"),
    (TXT2IMG, {"override_settings": {"sd_vae": "x.safetensors"}}, 422, "override_settings.sd_vae"),
    (TXT2IMG, {"override_settings": {"sd_model_checkpoint": 7}}, 404, "Model not found"),
    (TXT2IMG, {"override_settings": "x"}, 422, "override_settings"),
    (TXT2IMG, {"alwayson_scripts": {"ADetailer": {"args": [True]}}}, 422, "ADetailer"),
    (TXT2IMG, {"script_name": "X/Y/Z plot"}, 422, "script_name"),
    (TXT2IMG, {"refiner_checkpoint": "x", "refiner_switch_at": 0.8}, 422, "refiner_checkpoint"),
    (TXT2IMG, {"seed_resize_from_h": 512, "seed_resize_from_w": 512}, 422, "seed_resize_from_h"),
    (TXT2IMG, {"s_churn": 0.5}, 422, "s_churn"),
    (TXT2IMG, {"sampler_name": "Restart"}, 404, "Sampler not found"),
    (TXT2IMG, {"sampler_name": "DPM++ 2M Karras", "scheduler": "Exponential"}, 422, "scheduler"),
    (TXT2IMG, {"batch_size": 0}, 422, "batch_size: must be at least 1"),
    (TXT2IMG, {"batch_size": -1, "n_iter": -1}, 422, "batch_size: must be at least 1"),
    (TXT2IMG, {"n_iter": 0}, 422, "n_iter: must be at least 1"),
    (TXT2IMG, {"width": 0}, 422, "width"),
    (TXT2IMG, {"eta": 0.5}, 422, "eta"),
    (TXT2IMG, {"s_min_uncond": 1}, 422, "s_min_uncond"),
    (TXT2IMG, {"infotext": "a pear\nSteps: 9"}, 422, "infotext"),
    (TXT2IMG, {"firstpass_image": RED}, 422, "firstpass_image"),
    (IMG2IMG, {"init_images": [RED], "latent_mask": RED}, 422, "latent_mask"),
    (IMG2IMG, {"init_images": [RED], "initial_noise_multiplier": 0.5}, 422, "initial_noise"),
    (IMG2IMG, {"init_images": [RED], "mask": RED, "mask_blur_x": 9}, 422, "mask_blur_x"),
    (IMG2IMG, {"init_images": []}, 422, "init_images"),
    (IMG2IMG, {"init_images": [RED, RED]}, 422, "init_images"),
    (IMG2IMG, {"init_images": ["http://example.com/x.png"]}, 422, "init_images"),
    (IMG2IMG, {"init_images": [RED], "mask": RED, "mask_blur": -1}, 422, "mask_blur"),
    (REPLICATE, {"num_outputs": "2"}, 422, "input.num_outputs"),
    (REPLICATE, {"hf_lora": "no such one"}, 404, "input.hf_lora"),
    (REPLICATE, {"lora": " "}, 422, "input.lora"),
    (REPLICATE, {"refine": "expert_ensemble_refiner"}, 422, "input.refine"),
    (REPLICATE, {"output_format": "gif"}, 422, "input.output_format"),
    (FAL, {"image_size": {"width": "1024", "height": 1024}}, 422, "body.image_size.width"),
    (FAL, {"image_size": {"width": 1024}}, 422, "body.image_size.height"),
    (FAL, {"loras": [{"path": ""}]}, 422, "body.loras.0.path"),
    (FAL, {"loras": [{"path": "Nobody"}]}, 404, "Nobody"),
    (FAL, {"loras": [{"path": "Ink", "scale": "0.5"}]}, 422, "body.loras.0.scale"),
    (FAL, {"image_url": RED}, 422, "body.image_url"),
    (FAL, {"ic_light_model_url": "https://example.com/x"}, 422, "body.ic_light_model_url"),
    (FAL, {"rescale_betas_snr_zero": True}, 422, "body.rescale_betas_snr_zero"),
]


async def test_what_cannot_be_meant_is_refused_in_the_dialects_shape(
    served: Served, inference: InferenceDouble
) -> None:
    await served.backend.upload(kohya_lora(), "Ink")
    for path, body, status, field in REFUSED:
        sent: dict[str, Any] = {"prompt": "x", **body}
        sent = {"input": sent} if path == REPLICATE else sent
        answer = await served.backend.http.post(path, json=sent)
        assert answer.status_code == status, (path, body, answer.text)
        assert field in field_of(path, answer), (path, body, answer.text)
    assert inference.requests == []


DRAWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (OPENAI, {"n": 2, "size": "auto", "quality": None, "style": "vivid", "user": 7, "foo": {}},
        {"num_images": 2}),
    (TXT2IMG, {"batch_size": "2", "n_iter": 2.0, "seed": "-1", "steps": "9", "save_images": True,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"},
        "alwayson_scripts": {"Seed": {"args": [-1, False, 0]}, "x": None}, "script_args": ["x"],
        "seed_resize_from_h": -1, "refiner_checkpoint": "None", "s_churn": 0, "eta": 1.0},
        {"num_images": 4, "steps": 9}),
    (TXT2IMG, {"sampler_name": "DPM++ 2M Karras"}, {"scheduler": "dpmpp_2m_karras"}),
    (TXT2IMG, {"sampler_name": "DPM++ 2M Karras", "scheduler": "Karras"},
        {"scheduler": "dpmpp_2m_karras"}),
    (TXT2IMG, {"sampler_name": "DPM++ 2M Karras", "scheduler": "SGM Uniform"},
        {"scheduler": "dpmpp_2m_trailing"}),
    (IMG2IMG, {"init_images": [f"data:image/png;base64,{RED}"], "mask": RED,
        "inpainting_fill": "1", "initial_noise_multiplier": 1, "eta": 1.0, "latent_mask": None},
        {"num_images": 1}),
    (FAL, {"image_size": {"width": 768, "height": 1024}, "loras": None, "scheduler": ""},
        {"width": 768, "height": 1024}),
]  # fmt: skip


async def test_what_can_be_meant_is_drawn_so(served: Served, inference: InferenceDouble) -> None:
    for path, body, wanted in DRAWN:
        answer = await served.backend.http.post(path, json={"prompt": "x", **body})
        assert answer.status_code == 200, (path, body, answer.text)
        drawn = inference.requests[-1].model_dump(mode="json")
        assert {name: drawn[name] for name in wanted} == wanted, (path, body)
        if path == IMG2IMG:  # the sides were left to the worker: they are the picture's
            info = json.loads(answer.json()["info"])
            assert f"Size: {info['width']}x{info['height']}" in info["infotexts"][0]
    silent = await served.backend.http.post(TXT2IMG, json={"prompt": "x", "send_images": False})
    assert (silent.status_code, silent.json()["images"]) == (200, [])


FORMS = (
    {"loras[][name]": "Ink", "loras[][scale]": "0.5"},
    {"loras[0][name]": "Ink", "loras[0][scale]": "0.5"},
    {"loras": '[{"name": "Ink", "scale": 0.5}]'},
    {"loras[]": "Ink"},
    {"loras[0]": "Ink"},
)


async def test_a_form_writes_a_list_of_loras_in_any_way(
    served: Served, inference: InferenceDouble
) -> None:
    await served.backend.upload(kohya_lora(), "Ink")

    async def edit(form: dict[str, str], image: str = "image") -> httpx2.Response:
        return await served.backend.http.post(
            "/v1/images/edits", data={"prompt": "x", **form}, files=[(image, ("a.png", png()))]
        )

    for form, image in zip(FORMS, ("image", "image[]", "image[0]", "image", "image"), strict=True):
        answer = await edit(form, image)
        assert answer.status_code == 200, (form, answer.text)
        [used] = inference.requests[-1].loras
        assert used.scale == (0.5 if "0.5" in str(form) else 1.0), form
    for wrong in ({"loras[a][name]": "Ink"}, {"loras[0][weight]": "1"}):
        answer = await edit(wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "loras")


async def test_a_form_passes_nothing_over(served: Served, inference: InferenceDouble) -> None:
    file = ("a.png", png(), "image/png")
    text, image = ("prompt", (None, "x")), ("image", file)
    odd: list[tuple[list[Any], str]] = [
        ([text, image, ("prompt", (None, "y"))], "prompt"),
        ([text, image, ("strength", (None, "0.1")), ("strength", (None, "0.9"))], "strength"),
        ([text, image, ("mask", file), ("mask", file)], "mask"),
        ([text, image, ("mask", (None, ""))], "mask"),
        ([text, image, ("mask", file)], "mask"),  # without transparency
        ([text, image, ("image", (None, "x"))], "image"),
        ([image, ("prompt", file)], "prompt"),
        ([text, image, ("loras", file)], "loras"),
        ([text, image, ("stream", (None, "zzz"))], "stream"),
    ]
    for parts, param in odd:
        answer = await served.backend.http.post("/v1/images/edits", files=parts)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), parts
    answer = await served.backend.http.post("/v1/images/edits", json={"prompt": "x"})
    assert "multipart/form-data" in answer.json()["error"]["message"]
    assert inference.requests == []
    for stream, kind in (("yes", "text/event-stream"), ("0", "application/json")):
        answer = await served.backend.http.post(
            "/v1/images/edits", files=[text, image, ("stream", (None, stream))]
        )
        assert answer.headers["content-type"].startswith(kind), answer.text


async def test_a_prediction_needs_its_input_and_a_model_s_name(served: Served) -> None:
    path = "/replicate/v1/predictions"
    for body in ({"prompt": "x"}, {}, {"input": None}):
        answer = await served.backend.http.post(path, json={"version": "stability-ai/sdxl", **body})
        assert (answer.status_code, answer.json()["field"]) == (422, "input")
    for owner in ("%00", "%20", "a%0Ab"):
        place = f"/replicate/v1/models/{owner}/sdxl/predictions"
        answer = await served.backend.http.post(place, json={"input": {}})
        assert (answer.status_code, answer.json()["field"]) == (404, "model")
