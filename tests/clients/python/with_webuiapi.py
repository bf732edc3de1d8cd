"""`webuiapi`: what there is, a picture with a LoRA, one drawn over, what its file says."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlsplit

import webuiapi
from asked import KEY, PROMPT, TAG, URL, WANTED, tell

place = urlsplit(URL)
api: Any = webuiapi.WebUIApi(host=place.hostname, port=place.port)
api.set_auth("sdxl", KEY)
size = {"width": WANTED["width"], "height": WANTED["height"]}
ours = {"seed": WANTED["seed"], "steps": WANTED["steps"], "cfg_scale": WANTED["cfg"]}

drawn = api.txt2img(prompt=f"{PROMPT} {TAG}", sampler_name="Euler", **size, **ours)
file = io.BytesIO()
drawn.image.save(file, "PNG")
over = api.img2img(
    images=[drawn.image],
    prompt=PROMPT,
    denoising_strength=0.5,
    sampler_name="Euler",
    **size,
    **ours,
)
tell(
    [file.getvalue()],
    over=list(over.image.size),
    seed=drawn.info["seed"],
    infotext=drawn.info["infotexts"][0],
    models=len(api.get_sd_models()),
    samplers=[sampler["name"] for sampler in api.get_samplers()],
    loras=[lora["name"] for lora in api.get_loras()],
    idle=api.get_progress()["state"]["job_count"],
    options="sd_model_checkpoint" in api.get_options(),
)
