"""`litellm`: a picture with a LoRA, and an edit of it."""

from __future__ import annotations

import base64
import io
from typing import Any

import litellm
from asked import KEY, PROMPT, SIZE, TAG, URL, WANTED, tell
from litellm.exceptions import AuthenticationError

where: Any = {"model": "openai/gpt-image-1", "api_base": f"{URL}/v1", "api_key": KEY}
ours = {name: WANTED[name] for name in ("seed", "steps", "cfg")}

drawn = litellm.image_generation(prompt=f"{PROMPT} {TAG}", size=SIZE, **where, **ours)
picture = base64.b64decode(drawn.data[0].b64_json)
file = io.BytesIO(picture)
file.name = "a.png"
edited = litellm.image_edit(image=file, prompt=PROMPT, size=SIZE, **where)
try:
    litellm.image_generation(prompt=PROMPT, **{**where, "api_key": "sdxl_wrong"})
    error = ""
except AuthenticationError as refused:
    error = type(refused).__name__
tell([picture], edited=len(base64.b64decode(edited.data[0].b64_json)) > 500, error=error)
