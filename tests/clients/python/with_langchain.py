"""`langchain_community`: pictures by the URLs that its wrapper of OpenAI's answers with."""

from __future__ import annotations

import io
from typing import Any

import openai
from asked import KEY, PROMPT, SIZE, TAG, URL, fetched, tell
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from PIL import Image

where: Any = {"model": "dall-e-3", "base_url": f"{URL}/v1", "api_key": KEY, "size": SIZE}

urls = DallEAPIWrapper(**where, n=2).run(f"{PROMPT} {TAG}").splitlines()
sizes = ["{}x{}".format(*Image.open(io.BytesIO(fetched(url))).size) for url in urls]
try:
    DallEAPIWrapper(**{**where, "api_key": "sdxl_wrong"}).run(PROMPT)
    error = ""
except openai.AuthenticationError as refused:
    error = type(refused).__name__
tell([], as_asked=sizes == [SIZE] * 2, error=error)
