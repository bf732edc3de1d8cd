"""What each script draws, where, and how it says what came of it."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Sequence
from typing import Any

URL = os.environ["SDXL_URL"]
KEY = os.environ["SDXL_KEY"]
WANTED: dict[str, Any] = json.loads(os.environ["WANTED"])
PROMPT: str = WANTED["prompt"]
TAG = f"<lora:{WANTED['lora']}:{WANTED['scale']}>"
SIZE = f"{WANTED['width']}x{WANTED['height']}"
LORAS = [{"name": WANTED["lora"], "scale": WANTED["scale"]}]


def fetched(url: str) -> bytes:
    """What a picture's URL leads to."""
    with urllib.request.urlopen(url) as answer:
        data: bytes = answer.read()
        return data


def tell(pictures: Sequence[bytes], **facts: Any) -> None:
    """The last line of a script."""
    encoded = [base64.b64encode(picture).decode() for picture in pictures]
    print(json.dumps({"pictures": encoded, **facts}))
