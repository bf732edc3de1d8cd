"""`fal-client`, by https as it insists on: a picture with a LoRA, queued and at once."""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path

import fal_client
import fal_client.client
from asked import LORAS, PROMPT, TAG, WANTED, fetched, tell
from PIL import Image

APP = "fal-ai/fast-sdxl"
given = {
    "seed": WANTED["seed"],
    "num_inference_steps": WANTED["steps"],
    "guidance_scale": WANTED["cfg"],
    "image_size": {"width": WANTED["width"], "height": WANTED["height"]},
    "format": "png",
}
ours = [{"path": one["name"], "scale": one["scale"]} for one in LORAS]

told: list[str] = []
subscribed = fal_client.subscribe(
    APP,
    {"prompt": PROMPT, "loras": ours, **given},
    with_logs=True,
    on_queue_update=lambda state: told.append(type(state).__name__),
)
at_once = fal_client.run(APP, {"prompt": f"{PROMPT} {TAG}", "sync_mode": True, **given})
picture = fetched(subscribed["images"][0]["url"])
over = fal_client.run(
    f"{APP}/image-to-image",
    {
        "prompt": PROMPT,
        "image_url": fal_client.encode_image(Image.open(io.BytesIO(picture)), format="png"),
        "strength": 0.5,
        **given,
    },
)
# Its storage's address is built in.
fal_client.client.REST_URL = f"https://{os.environ['FAL_RUN_HOST'].replace('/run', '/rest')}"
stored = fal_client.upload_file(Path(sys.argv[1]), repository="fal")
sent = fal_client.run(
    APP, {"prompt": PROMPT, "loras": [{"path": stored, "scale": WANTED["scale"]}], **given}
)
image_url = fal_client.upload(picture, "image/png", "a.png", repository="fal")
stored_over = fal_client.run(
    f"{APP}/image-to-image", {"prompt": PROMPT, "image_url": image_url, "strength": 0.5, **given}
)
handle = fal_client.submit(APP, {"prompt": PROMPT, **given})
handle.get()
try:
    fal_client.run(APP, {"prompt": PROMPT, "image_size": "huge"})
    error = ""
except fal_client.client.FalClientHTTPError as refused:
    error = f"{refused.status_code} {refused.message}"
tell(
    [
        picture,
        fetched(sent["images"][0]["url"]),
        base64.b64decode(at_once["images"][0]["url"].partition(",")[2]),
    ],
    seed=subscribed["seed"],
    stored=len(fetched(stored_over["images"][0]["url"])) > 500,
    over=len(fetched(over["images"][0]["url"])) > 500,
    states=told,
    ended=type(handle.status()).__name__,
    error=error,
)
