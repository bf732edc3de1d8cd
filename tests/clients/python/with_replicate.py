"""`replicate`, of both main versions: a picture with a LoRA, a prediction, a file, an error."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from asked import KEY, PROMPT, URL, WANTED, fetched, tell

# By name: one version's types are not the other's.
replicate: Any = importlib.import_module("replicate")
VERSION = importlib.metadata.version("replicate")
SECOND = VERSION.startswith("2")
if SECOND:
    client = replicate.Replicate(bearer_token=KEY, base_url=f"{URL}/replicate/v1")
else:
    client = replicate.Client(api_token=KEY, base_url=f"{URL}/replicate")

given = {
    "prompt": PROMPT,
    "seed": WANTED["seed"],
    "num_inference_steps": WANTED["steps"],
    "guidance_scale": WANTED["cfg"],
    "width": WANTED["width"],
    "height": WANTED["height"],
    "lora_scale": WANTED["scale"],
}


def run(model: str, **more: Any) -> bytes:
    """The picture of a run."""
    output = client.run(model, input={**given, **more}, use_file_output=False)
    picture: bytes = fetched(output[0])
    return picture


pictures = [run("stability-ai/sdxl", lora=WANTED["lora"])]
pictures.append(run(f"stability-ai/sdxl:{'7' * 64}", lora=WANTED["lora"]))
lora = Path(sys.argv[1])
if SECOND:
    sent = client.files.create(content=lora.read_bytes(), filename=lora.name)
    made = client.predictions.create(
        version=f"stability-ai/sdxl:{'7' * 64}",
        input={**given, "lora": sent.urls.get},
        prefer="wait",
    )
    read = client.predictions.get(prediction_id=made.id)
    listed = [one.id for one in client.predictions.list()]
else:
    sent = client.files.create(io.BytesIO(lora.read_bytes()), filename=lora.name)
    given["lora"] = sent.urls["get"]
    made = client.models.predictions.create("stability-ai/sdxl", input=given, wait=True)
    read = client.predictions.get(made.id)
    listed = [one.id for one in client.predictions.list()]
pictures.append(fetched(read.output[0]))
with tempfile.NamedTemporaryFile(suffix=".png") as file:
    file.write(pictures[0])
    file.flush()
    with Path(file.name).open("rb") as opened:
        over = run("stability-ai/sdxl", image=opened, prompt_strength=0.5)
try:
    client.run("black-forest-labs/flux-dev", input={"prompt": "x"})
    error = ""
except Exception as refused:
    error = str(refused)
tell(
    pictures,
    version=VERSION,
    status=read.status,
    listed=made.id in listed,
    over=len(over) > 500,
    error=error,
)
