"""Pictures of the demo model by way of a worker's engine, and sheets of them."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_model.common import MODEL, SIZE, STEPS
from sdxl_contract.request import GenerateRequest
from sdxl_worker.engine import Engine
from sdxl_worker.settings import Settings
from testkit.worker import FileServer, file_server

Pixels = NDArray[np.uint8]


class Drawing:
    """Asks one engine for pictures: uint8 (H, W, 3)."""

    def __init__(self, engine: Engine, files: FileServer) -> None:
        self._engine, self._files = engine, files

    @property
    def vae(self) -> Any:
        """The model's autoencoder."""
        assert self._engine._ready is not None
        return self._engine._ready.model.pipe.vae

    def source(self, picture: Pixels) -> dict[str, str]:
        """`picture` as a request names one."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        return {"url": self._files.add(file.getvalue(), "/picture.png")}

    async def draw(self, prompt: str, seed: int, **fields: Any) -> Pixels:
        """One picture of the model's own size."""
        return await self.ask(
            prompt=prompt, seed=seed, steps=STEPS, width=SIZE, height=SIZE, **fields
        )

    async def ask(self, **fields: Any) -> Pixels:
        """One picture."""
        request = GenerateRequest(timeout=280, **fields)
        result = await self._engine.submit(request).result()
        data = base64.b64decode(result.image_base64 or "")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@asynccontextmanager
async def drawing(**settings: Any) -> AsyncIterator[Drawing]:
    """An engine of the demo model on the CPU; `settings` name its further networks."""
    fixed: dict[str, Any] = {"base_model": str(MODEL), "device": "cpu", "dtype": "float32"}
    engine = Engine(Settings(**fixed, lora_allow_loopback=True, warmup=False, **settings))
    with file_server() as files:
        try:
            await engine.load()
            yield Drawing(engine, files)
        finally:
            await engine.aclose()


def save_sheet(columns: list[list[Pixels]], path: Path | None) -> None:
    """All pictures in one PNG, where one is wanted."""
    if path is not None:
        rows = np.concatenate([np.concatenate(column) for column in columns], axis=1)
        Image.fromarray(rows).save(path, optimize=True)
