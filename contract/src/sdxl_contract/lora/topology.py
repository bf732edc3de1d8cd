"""Module names and weight shapes of the Stable Diffusion families, written down as small tables.

Duty: what SD 1, SD 2, SDXL and the SDXL refiner look like inside, so that a LoRA of theirs can be
named without loading any of them. Names are diffusers'.
Must not know: files, LoRAs.

Sizes are those of the published configs (`unet/config.json`, `text_encoder/config.json`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class UNetTopology:
    """The sizes that fix a UNet's modules. Per level, from the image inwards."""

    channels: tuple[int, ...]
    down_transformers: tuple[int, ...]
    mid_transformers: int
    cross_attention_dim: int
    linear_projection: bool
    added_embedding: int = 0
    layers_per_block: int = 2
    in_channels: int = 4


@dataclass(frozen=True)
class TextTopology:
    """The sizes that fix a CLIP text encoder's modules."""

    hidden: int
    layers: int
    intermediate: int
    projection: int = 0


@dataclass(frozen=True)
class Family:
    """A published base model: its name for people and what it is made of."""

    name: str
    unet: UNetTopology
    text_encoders: dict[str, TextTopology]


# CLIP's, the same in all of its sizes.
_VOCABULARY, _POSITIONS = 49408, 77

_CLIP_L = TextTopology(768, 12, 3072)
_CLIP_H = TextTopology(1024, 23, 4096)
_CLIP_G = TextTopology(1280, 32, 5120, projection=1280)

FAMILIES: dict[str, Family] = {
    "sdxl": Family(
        "SDXL",
        UNetTopology((320, 640, 1280), (0, 2, 10), 10, 2048, True, 2816),
        {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
    ),
    "sd1": Family(
        "SD 1",
        UNetTopology((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, False),
        {"text_encoder": _CLIP_L},
    ),
    "sd2": Family(
        "SD 2",
        UNetTopology((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, True),
        {"text_encoder": _CLIP_H},
    ),
    "sdxl-refiner": Family(
        "SDXL refiner",
        UNetTopology((384, 768, 1536, 1536), (0, 4, 4, 0), 4, 1280, True, 2560),
        {"text_encoder_2": _CLIP_G},
    ),
}


@cache
def family_modules(family: str) -> Shapes:
    """Full module name → weight shape of one of `FAMILIES`."""
    known = FAMILIES[family]
    shapes = {f"unet.{name}": shape for name, shape in _unet(known.unet)}
    for root, text in known.text_encoders.items():
        shapes |= {f"{root}.{name}": shape for name, shape in _text_encoder(text)}
    return shapes


_Named = Iterator[tuple[str, tuple[int, ...]]]


def _unet(top: UNetTopology) -> _Named:
    first, time = top.channels[0], 4 * top.channels[0]
    yield "conv_in", (first, top.in_channels, 3, 3)
    yield "time_embedding.linear_1", (time, first)
    yield "time_embedding.linear_2", (time, time)
    if top.added_embedding:
        yield "add_embedding.linear_1", (time, top.added_embedding)
        yield "add_embedding.linear_2", (time, time)
    levels = len(top.channels)
    skips = [first]
    width = first
    for level, (out, depth) in enumerate(zip(top.channels, top.down_transformers, strict=True)):
        block = f"down_blocks.{level}"
        for layer in range(top.layers_per_block):
            yield from _resnet(f"{block}.resnets.{layer}", width, out, time)
            yield from _attention(f"{block}.attentions.{layer}", out, depth, top)
            width = out
            skips.append(out)
        if level < levels - 1:
            yield f"{block}.downsamplers.0.conv", (out, out, 3, 3)
            skips.append(out)
    for layer in range(2):
        yield from _resnet(f"mid_block.resnets.{layer}", width, width, time)
    yield from _attention("mid_block.attentions.0", width, top.mid_transformers, top)
    for level, (out, depth) in enumerate(
        zip(reversed(top.channels), reversed(top.down_transformers), strict=True)
    ):
        block = f"up_blocks.{level}"
        for layer in range(top.layers_per_block + 1):
            yield from _resnet(f"{block}.resnets.{layer}", width + skips.pop(), out, time)
            yield from _attention(f"{block}.attentions.{layer}", out, depth, top)
            width = out
        if level < levels - 1:
            yield f"{block}.upsamplers.0.conv", (out, out, 3, 3)
    yield "conv_norm_out", (first,)
    yield "conv_out", (top.in_channels, first, 3, 3)


def _resnet(name: str, inner: int, out: int, time: int) -> _Named:
    yield f"{name}.norm1", (inner,)
    yield f"{name}.conv1", (out, inner, 3, 3)
    yield f"{name}.time_emb_proj", (out, time)
    yield f"{name}.norm2", (out,)
    yield f"{name}.conv2", (out, out, 3, 3)
    if inner != out:
        yield f"{name}.conv_shortcut", (out, inner, 1, 1)


def _attention(name: str, width: int, depth: int, top: UNetTopology) -> _Named:
    if not depth:
        return
    projection = (width, width) if top.linear_projection else (width, width, 1, 1)
    yield f"{name}.norm", (width,)
    yield f"{name}.proj_in", projection
    yield f"{name}.proj_out", projection
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, context in (("attn1", width), ("attn2", top.cross_attention_dim)):
            yield f"{block}.{attention}.to_q", (width, width)
            yield f"{block}.{attention}.to_k", (width, context)
            yield f"{block}.{attention}.to_v", (width, context)
            yield f"{block}.{attention}.to_out.0", (width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield f"{block}.{norm}", (width,)
        yield f"{block}.ff.net.0.proj", (8 * width, width)
        yield f"{block}.ff.net.2", (width, 4 * width)


def _text_encoder(top: TextTopology) -> _Named:
    hidden = top.hidden
    yield "text_model.embeddings.token_embedding", (_VOCABULARY, hidden)
    yield "text_model.embeddings.position_embedding", (_POSITIONS, hidden)
    for number in range(top.layers):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}.self_attn.{part}", (hidden, hidden)
        yield f"{layer}.layer_norm1", (hidden,)
        yield f"{layer}.layer_norm2", (hidden,)
        yield f"{layer}.mlp.fc1", (top.intermediate, hidden)
        yield f"{layer}.mlp.fc2", (hidden, top.intermediate)
    yield "text_model.final_layer_norm", (hidden,)
    if top.projection:
        yield "text_projection", (top.projection, hidden)
