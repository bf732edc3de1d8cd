"""`openai`: a picture with a LoRA, streamed and by URL; an edit; the models; an error."""

from __future__ import annotations

import base64
import io
from typing import Any

import openai
from asked import KEY, LORAS, PROMPT, SIZE, TAG, URL, WANTED, fetched, tell

client: Any = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)
ours = {name: WANTED[name] for name in ("seed", "steps", "cfg")}
asked: Any = {"model": "gpt-image-1", "size": SIZE}

by_field = client.images.generate(prompt=PROMPT, extra_body={**ours, "loras": LORAS}, **asked)
by_tag = client.images.generate(
    prompt=f"{PROMPT} {TAG}", extra_body=ours, response_format="url", **asked
)
kinds, streamed = [], b""
for event in client.images.generate(
    prompt=f"{PROMPT} {TAG}", extra_body=ours, stream=True, partial_images=2, **asked
):
    kinds.append(event.type.rpartition(".")[2])
    streamed = base64.b64decode(event.b64_json)
first = base64.b64decode(by_field.data[0].b64_json)
edited = client.images.edit(
    image=("a.png", io.BytesIO(first)),
    prompt=PROMPT,
    size=SIZE,
    extra_body={**ours, "strength": 0.5},
)
try:
    client.images.generate(prompt=PROMPT, model="flux")
    error = ""
except openai.NotFoundError as refused:
    error = str(refused.code)
tell(
    [first, fetched(by_tag.data[0].url), streamed],
    kinds=kinds,
    edited=len(base64.b64decode(edited.data[0].b64_json)) > 500,
    seed=by_field.data[0].seed,
    models=[model.id for model in client.models.list()],
    error=error,
)
