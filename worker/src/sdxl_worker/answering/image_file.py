"""From a picture's pixels to the bytes of a file, fast, with its parameters inside.

Duty: encoding and the text that other tools read. Must not know: how the pixels came about.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Mapping, Sequence

from PIL import Image

from sdxl_contract.drawing.controls import Control
from sdxl_contract.drawing.hires import LANCZOS, LATENT, Hires
from sdxl_contract.drawing.references import Reference
from sdxl_contract.drawing.upscaling import Upscale
from sdxl_contract.pictures import Area, Fill, Inpaint
from sdxl_contract.prompts.words import PromptSyntax
from sdxl_contract.request import GenerateRequest, OutputFormat
from sdxl_contract.result import LoraReport
from sdxl_worker.answering.png import encode_png
from sdxl_worker.embeddings import Embedding

_JPEG_QUALITY = 92
_WEBP_QUALITY = 90
_EXIF_DIRECTORY, _EXIF_USER_COMMENT = 0x8769, 0x9286
_LONG, _UNDEFINED = 4, 7
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NAME_SIGNS = re.compile(r'[<>:",\\\x00-\x1f\x7f-\x9f\u2028\u2029]')
_NEEDS_QUOTES = re.compile(r'[,:"\n]')
# XMP (ISO 16684-1) with the one property of IPTC's that says where a picture comes from. The mark
# at its beginning is not of Latin-1, so that a PNG has it as iTXt, as the standard asks.
_PNG_XMP = "XML:com.adobe.xmp"
_MADE = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    "Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
)

# A1111's words.
_FILLS = {
    Fill.ORIGINAL: "original",
    Fill.SURROUNDINGS: "fill",
    Fill.NOISE: "latent noise",
    Fill.NOTHING: "latent nothing",
}

_UPSCALERS = {LATENT: "Latent", LANCZOS: "Lanczos"}


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
    more: Mapping[str, str] | None = None,
) -> str:
    """The settings of one picture in the form that A1111 and its readers understand.

    What would break that form is rewritten: control characters, and the signs of `<lora:…>` and of
    the list of hashes in a LoRA's name.

    Args:
        more: further facts by the names that those readers know.
    """
    names = [_plain_name(report) for report in loras]
    tags = "".join(
        f" <lora:{name}:{_figure(r.scale)}>" for name, r in zip(names, loras, strict=True)
    )
    lines = [_printable(prompt) + tags]
    if negative_prompt:
        lines.append(f"Negative prompt: {_printable(negative_prompt)}")
    facts = [
        f"Steps: {steps}",
        f"Sampler: {scheduler}",
        f"CFG scale: {_figure(cfg)}",
        f"Seed: {seed}",
        f"Size: {size[0]}x{size[1]}",
        f"Model: {_quoted(base_model)}",
    ]
    if loras:
        hashes = (f"{name}: {r.sha256[:12]}" for name, r in zip(names, loras, strict=True))
        facts.append(f"Lora hashes: {_quoted(', '.join(hashes))}")
    facts += [f"{name}: {_quoted(value)}" for name, value in (more or {}).items()]
    lines.append(", ".join(facts))
    return "\n".join(lines)


def picture_facts(request: GenerateRequest) -> dict[str, str]:
    """What `parameters_text` tells beyond the usual: of how words are read, a second pass, what
    holds the drawing, or the picture that is drawn over."""
    facts: dict[str, str] = {}
    if request.clip_skip:
        # A1111 counts from the last layer as 1, and SDXL leaves that one out anyway.
        facts["Clip skip"] = str(request.clip_skip + 2)
    if request.prompt_syntax is not PromptSyntax.WEIGHTS:
        facts["Prompt syntax"] = request.prompt_syntax.value
    if request.guidance_rescale:
        facts["CFG Rescale phi"] = _figure(request.guidance_rescale)
    if request.hires is not None:
        facts |= hires_facts(request.hires)
    facts |= held_facts(request.controls, request.references)
    if request.image is None:
        return facts
    facts["Denoising strength"] = _figure(request.drawing_strength())
    inpaint = request.inpaint or Inpaint()
    if request.mask is not None or request.outpaint is not None:
        facts["Mask blur"] = str(inpaint.blur)
    if request.mask is not None and request.mask.invert:
        facts["Mask mode"] = "Inpaint not masked"
    if inpaint.area is Area.MASKED:
        facts["Inpaint area"] = "Only masked"
        facts["Masked area padding"] = str(inpaint.padding)
    if inpaint.fill is not None:
        facts["Masked content"] = _FILLS[inpaint.fill]
    if inpaint.soft:
        facts["Soft inpainting enabled"] = "True"
    if request.outpaint is not None:
        borders = request.outpaint.model_dump(exclude_defaults=True)
        facts["Outpaint"] = ", ".join(f"{side} {width}" for side, width in borders.items())
    return facts


def held_facts(controls: Sequence[Control], references: Sequence[Reference]) -> dict[str, str]:
    """What `parameters_text` tells of controls and references: each as A1111's extension tells of
    a unit."""
    units = []
    for control in controls:
        unit = {"Module": "none" if control.canny is None else "canny", "Model": control.model}
        if control.type is not None:
            unit["Union Control Type"] = control.type
        if control.canny is not None:
            unit["Threshold A"], unit["Threshold B"] = (
                str(control.canny.low), str(control.canny.high),
            )  # fmt: skip
        units.append(unit | _times(control))
    for reference in references:
        unit = {"Module": "ip-adapter", "Model": reference.adapter}
        units.append(unit | _times(reference))
    return {
        f"ControlNet {number}": ", ".join(f"{name}: {value}" for name, value in unit.items())
        for number, unit in enumerate(units)
    }


def _times(one: Control | Reference) -> dict[str, str]:
    return {
        "Weight": _figure(one.scale),
        "Guidance Start": _figure(one.start),
        "Guidance End": _figure(one.end),
    }


def upscale_text(upscale: Upscale) -> str:
    """What the file of an enlarged picture tells: that, and nothing of a drawing."""
    name = _UPSCALERS.get(upscale.upscaler, upscale.upscaler)
    return (
        f"Postprocess upscale by: {_figure(upscale.scale)}, Postprocess upscaler: {_quoted(name)}"
    )


def hires_facts(hires: Hires) -> dict[str, str]:
    """What `parameters_text` tells of a second pass: what was asked for and is not the first's."""
    facts = {
        "Denoising strength": _figure(hires.strength),
        "Hires upscale": _figure(hires.scale),
        "Hires upscaler": _UPSCALERS.get(hires.upscaler, hires.upscaler),
    }
    if hires.steps:
        facts["Hires steps"] = str(hires.steps)
    if hires.scheduler is not None:
        facts["Hires sampler"] = hires.scheduler.value
    if hires.cfg is not None:
        facts["Hires CFG Scale"] = _figure(hires.cfg)
    if hires.prompt is not None:
        facts["Hires prompt"] = _printable(hires.prompt)
    if hires.negative_prompt is not None:
        facts["Hires negative prompt"] = _printable(hires.negative_prompt)
    return facts


def embedding_facts(embeddings: Sequence[Embedding]) -> dict[str, str]:
    """The hashes of textual inversions, by A1111's name for them."""
    if not embeddings:
        return {}
    return {"TI hashes": ", ".join(f"{one.token}: {one.sha256[:12]}" for one in embeddings)}


def _figure(number: float) -> str:
    """All digits that tell `number` from its neighbours, so that it is read back as it was."""
    return repr(float(number)).removesuffix(".0")


def _printable(text: str) -> str:
    """Without control characters but tab and newline: a PNG's text may not hold NUL."""
    return _CONTROL.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))


def _plain_name(report: LoraReport) -> str:
    return _NAME_SIGNS.sub("_", report.name or "").strip() or report.sha256[:12]


def _quoted(value: str) -> str:
    """A value as it is, or as JSON text where a comma, colon or line end would cut it."""
    return json.dumps(value, ensure_ascii=False) if _NEEDS_QUOTES.search(value) else value


def encode_image(
    image: Image.Image, output_format: OutputFormat, parameters: str, *, says_made: bool = False
) -> bytes:
    """`image` (RGB) as a file's bytes; the same picture and parameters give the same bytes.

    `says_made`: say in XMP that a model made it. That is for files that nobody signs afterwards: a
    signed manifest says the same, and cannot be changed unseen.
    """
    if output_format is OutputFormat.PNG:
        texts = {"parameters": parameters}
        return encode_png(image, texts | ({_PNG_XMP: _MADE} if says_made else {}))
    buffer = io.BytesIO()
    extra = {"exif": _exif(b"UNICODE\0" + parameters.encode("utf-16-be"))}
    if says_made:
        extra["xmp"] = _MADE.encode()
    if output_format is OutputFormat.JPEG:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, **extra)
    else:
        image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=2, **extra)
    return buffer.getvalue()


def _exif(comment: bytes) -> bytes:
    """Exif data that holds a user comment and nothing else.

    By hand, because readers want the comment in the sub-directory that is called Exif, and of the
    type UNDEFINED, as the standard requires: Pillow writes another type.
    """
    directories = struct.pack(
        ">2sHI HHHIII HHHIII", b"MM", 42, 8,
        1, _EXIF_DIRECTORY, _LONG, 1, 26, 0,
        1, _EXIF_USER_COMMENT, _UNDEFINED, len(comment), 44, 0,
    )  # fmt: skip
    return b"Exif\0\0" + directories + comment
