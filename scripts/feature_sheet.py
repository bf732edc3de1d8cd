"""One small picture of each thing that can be drawn, by the demo model: docs/images/features.png.

    python -m scripts.feature_sheet

What an operator provides, the demo model has in small: a control network, an upscaler, an adapter.
Must not know: how a picture is made.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image
from safetensors.torch import save

from scripts.contact_sheet import Tile, contact_sheet
from scripts.stack import DEMO_MODEL, DEMO_NETWORKS, REPOSITORY
from sdxl_contract.drawing.edges import canny
from sdxl_contract.request import GenerateRequest
from sdxl_worker.engine import Engine
from sdxl_worker.settings import Settings

LORAS = REPOSITORY / "demo_model" / "loras"
OUTPUT = REPOSITORY / "docs" / "images" / "features.png"
SIDE = 128  # px, as the demo model was trained
APPLE = "red apple, yellow background"
BASE: dict[str, Any] = {
    "prompt": APPLE,
    "seed": 7,
    "steps": 20,
    "width": SIDE,
    "height": SIDE,
    "timeout": 280,
}
SHAPE = "rabbit, blue background"
SHOWN = "owl, orange background"
UPSCALER = "demo-2x"
ENLARGED = "avocado, white background"  # as the rabbit, a name that the upscaler never saw
# What is seen of an enlarged picture, in px of the small one: left, top, right, bottom.
PART = (40, 16, 88, 64)
# Of the sheet's file: far fewer bytes, and no picture looks another where they are well chosen.
_COLOURS, _CHOOSING = 256, 4


class Sheet:
    """Draws on one engine, with files served on loopback."""

    def __init__(self, engine: Engine, port: int, files: dict[str, bytes]) -> None:
        self._engine, self._port, self._files = engine, port, files

    def url(self, name: str, data: bytes) -> str:
        """Where `data` is from now on."""
        self._files[f"/{name}"] = data
        return f"http://127.0.0.1:{self._port}/{name}"

    async def draw(self, label: str, **fields: Any) -> Tile:
        """One picture."""
        sides = {"width": None, "height": None} if "image" in fields else {}
        values = {k: v for k, v in (BASE | sides | fields).items() if v is not None}
        result = await self._engine.submit(GenerateRequest(**values)).result()
        if not (result.model_clean and result.structure_clean):
            raise RuntimeError(f"{label}: the model was not proven clean")
        return Tile(base64.b64decode(result.image_base64 or ""), label)

    async def part(self, name: str, small: Tile, upscaler: str) -> Tile:
        """A part of a picture at twice its sides."""
        tile = await self.draw(
            f"{name} by {upscaler}", prompt="", seed=None, steps=None,
            image={"url": self.url(f"{name}.png", small.data)},
            upscale={"upscaler": upscaler, "scale": 2},
        )  # fmt: skip
        whole = Image.open(io.BytesIO(tile.data))
        left, top, right, bottom = (2 * place for place in PART)
        return Tile(png(whole.crop((left, top, right, bottom))), tile.label)

    def words_of(self, name: str) -> bytes:
        """A textual inversion whose vectors are those of a word that the model knows."""
        assert self._engine._ready is not None
        pipe = self._engine._ready.model.pipe
        vectors = {}
        for key, tokenizer, encoder in (
            ("clip_l", pipe.tokenizer, pipe.text_encoder),
            ("clip_g", pipe.tokenizer_2, pipe.text_encoder_2),
        ):
            ids = tokenizer(name, add_special_tokens=False)["input_ids"]
            vectors[key] = encoder.get_input_embeddings().weight.detach()[ids].contiguous()
        return save(vectors)

    async def rows(self) -> tuple[list[list[Tile]], list[str]]:
        """The tiles, and a title for each row."""
        source = await self.draw("prompt")
        image = {"url": self.url("source.png", source.data)}
        half = Image.new("L", (SIDE, SIDE), 0)
        half.paste(255, (0, 0, SIDE, SIDE // 2))
        mask = {"url": self.url("mask.png", png(half))}
        lora = {"url": self.url("lora", (LORAS / "line-art.safetensors").read_bytes())}
        word = {"url": self.url("word", self.words_of("lemon")), "token": "mystyle"}
        change = "[red apple:lemon:0.3], yellow background"
        smooth = {"prompt": "", "cfg": 1.0}
        large = {"width": 2 * SIDE, "height": 2 * SIDE}
        hires = {"scale": 2, "upscaler": UPSCALER, "strength": 0.3, **smooth}
        # A name that the control network's training never saw.
        shape = await self.draw("", prompt=SHAPE, seed=3)
        lines = png(canny(Image.open(io.BytesIO(shape.data)), 100, 200))
        avocado = await self.draw("", prompt=ENLARGED)
        control = {"model": "edges", "image": {"url": self.url("shape.png", shape.data)}}
        held = {"controls": [control | {"canny": {}}]}
        owl = await self.draw("", prompt=SHOWN, seed=3)
        like = {"adapter": "pictures", "image": {"url": self.url("owl.png", owl.data)}}
        rows = [
            [
                source,
                await self.draw("[from:to:0.3]", prompt=change, prompt_syntax="a1111"),
                await self.draw(
                    "embeddings", prompt="mystyle, yellow background", embeddings=[word]
                ),
                await self.draw("loras", loras=[lora | {"scale": 1.0}]),
            ],
            [
                await self.draw("strength 0.3", image=image, strength=0.3, **smooth),
                await self.draw(
                    "strength 0.9", image=image, strength=0.9, prompt="lemon, blue background"
                ),
                await self.draw(
                    "mask: upper half", image=image, mask=mask, strength=0.95,
                    prompt="red apple, blue background",
                ),
                await self.draw(
                    "outpaint: 64 px beside", image=image, outpaint={"left": 32, "right": 32}
                ),
            ],
            [
                await self.draw("256 px in one pass", **large),
                await self.draw("hires: 128, then 256 px", hires=hires),
                await self.draw(
                    f"upscale: {UPSCALER}, 2 times", prompt="", image=image, seed=None, steps=None,
                    upscale={"upscaler": UPSCALER, "scale": 2},
                ),
                await self.draw("scheduler dpmpp_2m_karras", scheduler="dpmpp_2m_karras"),
            ],
            [
                await self.part(name, small, upscaler)
                for name, small in (("avocado", avocado), ("rabbit", shape))
                for upscaler in ("lanczos", UPSCALER)
            ],
            [
                Tile(lines, f"edges of a {SHAPE.partition(',')[0]}"),
                await self.draw("no words", prompt=""),
                await self.draw("no words, held", prompt="", **held),
                await self.draw("an apple, held", **held),
            ],
            [
                Tile(owl.data, "shown"),
                await self.draw("no words", prompt="", seed=5),
                await self.draw("no words, shown it", prompt="", seed=5, references=[like]),
                await self.draw("an apple, shown it", references=[like | {"scale": 0.6}]),
            ],
        ]  # fmt: skip
        return rows, [
            "From words",
            "From a picture (the first one above)",
            "Larger, and otherwise",
            "Parts of an avocado and of a rabbit, 2 times as large (upscale)",
            "Held by edges (controls)",
            "Shown a picture (references)",
        ]


def png(image: Image.Image) -> bytes:
    """A file of it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


async def main() -> None:
    """Draw the sheet and keep it."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            data = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    engine = Engine(
        Settings(
            base_model=str(DEMO_MODEL),
            controls_dir=DEMO_NETWORKS["CONTROLS_DIR"],
            upscalers_dir=DEMO_NETWORKS["UPSCALERS_DIR"],
            adapters_dir=DEMO_NETWORKS["ADAPTERS_DIR"],
            device="cpu",
            dtype="float32",
            lora_allow_loopback=True,
        )
    )
    try:
        await engine.load()
        rows, titles = await Sheet(engine, server.server_address[1], files).rows()
    finally:
        await engine.aclose()
        server.shutdown()
    whole = contact_sheet(rows, titles)
    sheet = whole.quantize(_COLOURS, kmeans=_CHOOSING, dither=Image.Dither.NONE)
    sheet.save(OUTPUT, optimize=True)
    print(f"{OUTPUT.relative_to(REPOSITORY)}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    asyncio.run(main())
