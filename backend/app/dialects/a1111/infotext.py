"""A picture's parameters as A1111 writes them, and as it reads them out of a PNG."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from app.dialects.a1111.samplers import shown
from app.models import Content
from sdxl_contract.drawing.hires import BUILT_IN
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.pictures import STRENGTH_DEFAULT, Inpaint

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT_MAX = 1 << 20
_CHUNKS_MAX = 10_000
_NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)
_PAIR = re.compile(r'\s*([\w ./+-]{1,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def with_sides(content: Content) -> dict[str, Any]:
    """A drawn content's parameters; sides that were left to the worker are its pictures' own."""
    first = content.images[0]
    return {"width": first.width, "height": first.height, **content.parameters}


def infotext(content: Content, prompt: str, seed: int, model: str) -> str:
    """What A1111 keeps with a picture; `prompt` with its tags, as it was sent."""
    parameters = with_sides(content)
    solver, spacing = shown(parameters.get("scheduler"))
    pairs = [
        ("Steps", parameters["steps"]),
        ("Sampler", solver),
        ("Schedule type", spacing),
        ("CFG scale", f"{parameters['cfg']:g}"),
        ("Seed", seed),
        ("Size", f"{parameters['width']}x{parameters['height']}"),
        ("Model", model),
    ]
    hires = parameters.get("hires")
    if hires:
        pairs += [
            ("Denoising strength", f"{hires['strength']:g}"),
            ("Hires upscale", f"{hires['scale']:g}"),
            *([("Hires steps", hires["steps"])] if hires["steps"] else []),
            ("Hires upscaler", hires["upscaler"].capitalize()
             if hires["upscaler"] in BUILT_IN else hires["upscaler"]),
        ]  # fmt: skip
    elif parameters.get("image"):
        pairs.append(("Denoising strength", f"{parameters.get('strength', STRENGTH_DEFAULT):g}"))
        if parameters.get("mask"):
            inpaint = parameters.get("inpaint") or {}
            pairs.append(("Mask blur", inpaint.get("blur", Inpaint().blur)))
    pairs += _units(parameters)
    if content.loras:
        hashes = ", ".join(f"{lora['name']}: {lora['sha256'][:10]}" for lora in content.loras)
        pairs.append(("Lora hashes", '"' + hashes.replace('"', "'") + '"'))
    embeddings = parameters.get("embeddings") or ()
    if embeddings:
        told = ", ".join(f"{one['token']}: {one['sha256'][:12]}" for one in embeddings)
        pairs.append(("TI hashes", f'"{told}"'))
    lines = [prompt]
    if content.negative_prompt:
        lines.append(f"Negative prompt: {content.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in pairs))
    return "\n".join(lines)


def _units(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Controls and references, each as the extension tells of a unit."""
    units = []
    for control in parameters.get("controls") or ():
        canny = control.get("canny")
        unit = {"Module": "canny" if canny else "none", "Model": control["model"]}
        if control.get("type"):
            unit["Union Control Type"] = control["type"]
        if canny:
            unit |= {"Threshold A": canny["low"], "Threshold B": canny["high"]}
        units.append((unit, control))
    units += [
        ({"Module": "ip-adapter", "Model": reference["adapter"]}, reference)
        for reference in parameters.get("references") or ()
    ]
    texts = []
    for unit, use in units:
        times = (("Weight", "scale"), ("Guidance Start", "start"), ("Guidance End", "end"))
        told = unit | {name: f"{use[ours]:g}" for name, ours in times}
        texts.append(", ".join(f"{name}: {value}" for name, value in told.items()))
    return [(f"ControlNet {number}", f'"{text}"') for number, text in enumerate(texts)]


def read_infotext(text: str) -> dict[str, Any]:
    """The pairs of an infotext, and its prompts."""
    lines = text.strip().split("\n")
    pairs = dict(_PAIR.findall(lines[-1][:20_000])) if "Steps:" in lines[-1] else {}
    if pairs:
        lines.pop()
    words = "\n".join(lines)
    mark = _NEGATIVE.search(words)
    prompt, negative = (words[: mark.start()], words[mark.end() :]) if mark else (words, "")
    return {
        "Prompt": prompt.strip(),
        "Negative prompt": negative.strip(),
        **{name.strip(): _unquoted(value.strip()) for name, value in pairs.items()},
    }


def _unquoted(value: str) -> str:
    """A value without the quotes that keep its commas and line ends together."""
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        text = None
    return text if isinstance(text, str) else value.strip('"')


def png_texts(image: str) -> dict[str, str]:
    """The texts of a PNG in base64 (or a data URI), without decoding the picture.

    Raises:
        InvalidRequest: it is no PNG.
    """
    try:
        data = base64.b64decode(image.rpartition("base64,")[2], validate=False)
    except (binascii.Error, ValueError):
        data = b""
    if not data.startswith(_SIGNATURE):
        raise InvalidRequest("image: must be a PNG in base64", details={"field": "image"})
    texts: dict[str, str] = {}
    place = len(_SIGNATURE)
    for _ in range(_CHUNKS_MAX):
        if place + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place + 8 : place + 8 + length]
        place += 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt") and len(chunk) <= _TEXT_MAX:
            name, text = _read_text(kind, chunk)
            texts.setdefault(name, text)
        elif kind == b"IEND":
            break
    return texts


def _read_text(kind: bytes, chunk: bytes) -> tuple[str, str]:
    name, _, rest = chunk.partition(b"\x00")
    encoding = "latin-1"
    if kind == b"zTXt":
        rest = _inflate(rest[1:])
    elif kind == b"iTXt":
        encoding = "utf-8"
        is_compressed = rest[:1] == b"\x01"
        rest = rest[2:].partition(b"\x00")[2].partition(b"\x00")[2]
        rest = _inflate(rest) if is_compressed else rest
    return name.decode("latin-1"), rest.decode(encoding, "replace").replace("\x00", "")


def _inflate(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _TEXT_MAX)
    except zlib.error:
        return b""
