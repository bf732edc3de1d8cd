"""From a picture's pixels to the bytes of a file, fast, with its parameters inside.

Duty: encoding and the text that other tools read. Must not know: how the pixels came about.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from sdxl_contract.request import OutputFormat
from sdxl_contract.result import LoraReport
from sdxl_worker.png import encode_png

_JPEG_QUALITY = 92
_WEBP_QUALITY = 90
_EXIF_USER_COMMENT = 0x9286


def parameters_text(
    *,
    prompt: str,
    negative_prompt: str,
    steps: int,
    scheduler: str,
    cfg: float,
    seed: int,
    size: tuple[int, int],
    base_model: str,
    loras: Sequence[LoraReport],
) -> str:
    """The settings of one picture in the form that A1111 and its readers understand."""
    tags = "".join(f" <lora:{r.name or r.sha256[:12]}:{r.scale:g}>" for r in loras)
    lines = [prompt + tags]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    facts = [
        f"Steps: {steps}",
        f"Sampler: {scheduler}",
        f"CFG scale: {cfg:g}",
        f"Seed: {seed}",
        f"Size: {size[0]}x{size[1]}",
        f"Model: {base_model}",
    ]
    if loras:
        hashes = ", ".join(f"{r.name or r.sha256[:12]}: {r.sha256[:12]}" for r in loras)
        facts.append(f'Lora hashes: "{hashes}"')
    lines.append(", ".join(facts))
    return "\n".join(lines)


def encode_image(image: Image.Image, output_format: OutputFormat, parameters: str) -> bytes:
    """`image` (RGB) as a file's bytes; the same picture and parameters give the same bytes."""
    if output_format is OutputFormat.PNG:
        return encode_png(image, {"parameters": parameters})
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[_EXIF_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    if output_format is OutputFormat.JPEG:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, exif=exif)
    else:
        image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=2, exif=exif)
    return buffer.getvalue()
