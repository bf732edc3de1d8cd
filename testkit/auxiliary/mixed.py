"""One request for each thing that can be drawn, and trouble at a chosen place of any of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image
from safetensors.torch import save

from testkit.worker import SIDE, FileServer, RunningWorker, kohya_lora, photo_like


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def all_kinds(served: FileServer, worker: RunningWorker) -> dict[str, dict[str, Any]]:
    """Requests by what they are to show, with files at `served`.

    Their networks are `small` (an upscaler), `lines`, `union` and `sketch` (controls), `base` and
    `plus` (adapters).
    """
    assert worker.engine._ready is not None
    modules = worker.engine._ready.signature.modules
    first, second = (
        {"url": served.add(kohya_lora(modules, seed=seed), f"/{seed}.safetensors"), "scale": 0.8}
        for seed in (1, 2)
    )
    photo = photo_like(SIDE)
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (24, 0, 64, 64))
    source = {"url": served.add(png(photo), "/source.png")}
    area = {"url": served.add(png(mask), "/mask.png")}
    look = {"url": served.add(png(photo.rotate(90)), "/look.png")}
    pipe = worker.engine._ready.model.pipe
    vectors = {
        name: encoder.get_input_embeddings().weight.detach()[5:7].contiguous()
        for name, encoder in (("clip_l", pipe.text_encoder), ("clip_g", pipe.text_encoder_2))
    }
    word = {"url": served.add(save(vectors), "/word.safetensors"), "token": "mystyle"}
    lines = {"model": "lines", "image": source}
    base, plus = ({"adapter": name, "image": look, "scale": 0.6} for name in ("base", "plus"))
    hires = {"scale": 1.5, "steps": 1, "strength": 0.5}
    found: dict[str, dict[str, Any]] = {
        "words": {},
        "a1111's marks": {"prompt": "[a red:a green:0.5] (apple)", "prompt_syntax": "a1111"},
        "clip skip": {"clip_skip": 1, "guidance_rescale": 0.5},
        "a second-order sampler": {"scheduler": "heun"},
        "a lora": {"loras": [first]},
        "two loras": {"loras": [second, first | {"scale": -0.4}]},
        "an embedding": {"prompt": "mystyle", "embeddings": [word]},
        "a source": {"image": source, "strength": 0.6},
        "a mask": {"image": source, "mask": area, "strength": 1.0},
        "a soft masked area": {
            "image": source, "mask": area, "inpaint": {"soft": True, "area": "masked"},
            "width": SIDE, "height": SIDE,
        },
        "a frame": {"image": source, "outpaint": {"left": 32}},
        "a second pass": {"hires": hires},
        "a second pass over pixels": {"hires": hires | {"upscaler": "small"}, "loras": [first]},
        "an enlargement": {
            "image": source, "upscale": {"upscaler": "small", "scale": 1.5}, "prompt": "",
        },
        "a control": {"controls": [lines]},
        "two controls and a lora": {
            "controls": [lines | {"canny": {}, "end": 0.6}, lines | {"image": look}],
            "loras": [second],
        },
        "a union": {"controls": [{"model": "union", "type": "normal", "image": source}]},
        "a t2i adapter": {"controls": [{"model": "sketch", "image": source, "scale": 0.7}]},
        "one control of each kind": {
            "controls": [
                {"model": "union", "type": "canny", "image": look, "canny": {}, "start": 0.4},
                lines | {"scale": 0.5},
                {"model": "sketch", "image": source, "end": 0.6},
            ],
            "loras": [first], "hires": hires,
        },
        "a reference": {"references": [base]},
        "two references over a source": {
            "references": [base | {"end": 0.6}, plus], "image": source, "strength": 0.6,
        },
        "all at once": {
            "prompt": "a red mystyle", "embeddings": [word], "loras": [first, second],
            "controls": [lines], "references": [plus], "hires": hires | {"upscaler": "lanczos"},
        },
    }  # fmt: skip
    common = {"prompt": "a red apple", "seed": 5, "steps": 2}
    sized = {"width": SIDE, "height": SIDE}
    return {
        name: common | (fields if "image" in fields else sized | fields)
        for name, fields in found.items()
    }


class Trouble:
    """Does something at the n-th call of the places, before or after it is carried out."""

    def __init__(self) -> None:
        self.calls = 0
        self.act: Callable[[], object] | None = None
        self.at, self.before = 0, True

    def plan(self, act: Callable[[], object] | None, at: int = 0, *, before: bool = True) -> None:
        self.calls, self.act, self.at, self.before = 0, act, at, before

    def wrapped(self, original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            now = number == self.at and self.act is not None
            if now and self.before:
                self.act()  # type: ignore[misc]
            result = original(*arguments, **named)
            if now and not self.before:
                self.act()  # type: ignore[misc]
            return result

        return call
