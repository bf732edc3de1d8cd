"""Inspects a LoRA file by its header alone: what it is, and whether it fits a base model.

Duty: the one entry for whoever has a file and a signature but neither torch nor the model (the
backend, at upload). Reads 8 bytes and the header, never a tensor.
Must not know: storage, HTTP, torch.
"""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.identify import (
    Layers,
    context_widths,
    family_key_map,
    group_by_stem,
    name_base_model,
    text_widths,
)
from sdxl_contract.lora.layout import LoraLayout, lay_out, refuse_foreign, signature_key_map
from sdxl_contract.lora.safetensors import (
    Readable,
    SafetensorsHeader,
    load_failed,
    read_header,
    shown,
)
from sdxl_contract.lora.topology import FAMILIES, family_modules
from sdxl_contract.lora.trigger_words import trigger_words

_METADATA_VALUE_CHARS = 300
# What a library shows of a file's metadata; the rest is trainers' bookkeeping.
_SHOWN_METADATA = (
    "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    "ss_network_args", "ss_output_name", "ss_sd_model_name", "ss_training_comment", "ss_num_epochs",
    "modelspec.architecture", "modelspec.title", "modelspec.author", "modelspec.license",
    "modelspec.description", "modelspec.trigger_phrase", "modelspec.date", "modelspec.resolution",
    "format",
)  # fmt: skip
_SDXL = FAMILIES["sdxl"]


class LoraInspection(BaseModel):
    """What a LoRA file is. Only the header was read; values are checked where they are used."""

    model_config = ConfigDict(frozen=True)

    base_model: str = Field(description="family that it fits, such as SDXL")
    algorithm: str = Field(description="lora, locon, tucker, loha, lokr, full, dora; joined by +")
    format: str = Field(description="spelling: kohya, kohya-sgm, diffusers, peft, lycoris, …")
    rank: int = Field(description="largest rank; 0 where nothing is low-rank")
    modules: int = Field(description="layers that are changed")
    text_encoder: bool = Field(description="whether a text encoder is changed")
    trigger_words: list[str] = Field(default_factory=list)
    strays: list[str] = Field(default_factory=list, description="keys of no layer, to be skipped")
    parameters: int = Field(default=0, description="numbers in the file")
    dtype: str = Field(default="", description="of most tensors: F16, BF16 or F32")
    metadata: dict[str, str] = Field(default_factory=dict, description="a safe part of it")


def inspect_lora_file(
    file: Readable, size: int, signature: BaseModelSignature | None
) -> LoraInspection:
    """What the LoRA in `file` is, checked against `signature`.

    Where `signature.modules` is given, each layer must exist and fit exactly. Where it is empty,
    the built-in SDXL modules stand in if the signature has SDXL's widths; else the widths of the
    cross-attention and of the text encoders decide.

    Args:
        file: binary, at the file's first byte; read forward only, the header only; stays open.
        size: bytes of the whole file.
        signature: the loaded base model's; None where it is not known yet: then only what can fit
            no SDXL of any size is refused, and the worker that draws has the last word.

    Raises:
        LoraLoadFailed: the file is no LoRA or does not fit; the message says what it seems to be,
            `details["reason"]` why in one word.
    """
    header = read_header(file, size)
    return inspect_header(header, signature)


def inspect_header(
    header: SafetensorsHeader, signature: BaseModelSignature | None
) -> LoraInspection:
    """`inspect_lora_file` for a header that was read already."""
    if signature is None:
        return _of_no_model(header)
    if signature.modules:
        layout = lay_out(header, signature.modules, signature_key_map(signature), signature.name)
    elif _has_sdxl_widths(signature):
        layout = lay_out(header, family_modules("sdxl"), family_key_map("sdxl"), signature.name)
    else:
        return _by_widths(header, signature)
    return _inspection(header, layout, signature.family)


def _has_sdxl_widths(signature: BaseModelSignature) -> bool:
    hidden = {text.hidden for text in _SDXL.text_encoders.values()}
    return (
        signature.cross_attention_dim == _SDXL.unet.cross_attention_dim
        and set(signature.text_encoder_hidden_sizes) == hidden
    )


def _inspection(header: SafetensorsHeader, layout: LoraLayout, family: str) -> LoraInspection:
    return LoraInspection(
        base_model=family,
        algorithm=layout.algorithm,
        format=layout.format,
        rank=layout.rank,
        modules=len(layout.layers),
        text_encoder=layout.text_encoder,
        trigger_words=trigger_words(header.metadata),
        strays=layout.strays,
        **_facts(header),
    )


def _facts(header: SafetensorsHeader) -> dict[str, object]:
    count = 0
    dtypes: Counter[str] = Counter()
    for entry in header.tensors.values():
        span = entry.end - entry.start
        dtypes[entry.dtype] += span
        numbers = 1
        for side in entry.shape:
            numbers *= side
        count += numbers
    metadata = {
        key: shown(header.metadata[key], _METADATA_VALUE_CHARS)
        for key in _SHOWN_METADATA
        if key in header.metadata
    }
    return {"parameters": count, "dtype": dtypes.most_common(1)[0][0], "metadata": metadata}


def _of_no_model(header: SafetensorsHeader) -> LoraInspection:
    """The check while the base model is not known: a small SDXL has other widths than SDXL."""
    try:
        layout = lay_out(header, family_modules("sdxl"), family_key_map("sdxl"), _SDXL.name)
    except LoraLoadFailed:
        refuse_foreign(header)
        layers = group_by_stem(header.tensors)
        seems = name_base_model(layers) if layers else None
        full_size = _SDXL.unet.cross_attention_dim in context_widths(layers)
        if not layers or full_size or seems not in (None, "SDXL"):
            raise
        return _by_layers(header, layers, seems or "unknown")
    return _inspection(header, layout, "SDXL")


def _by_widths(header: SafetensorsHeader, signature: BaseModelSignature) -> LoraInspection:
    """The check for a model whose modules are unknown: only a wrong width refuses a file."""
    refuse_foreign(header)
    layers = group_by_stem(header.tensors)
    wrong = context_widths(layers) - {signature.cross_attention_dim}
    wrong |= text_widths(layers) - set(signature.text_encoder_hidden_sizes)
    if not layers or wrong:
        seems = name_base_model(layers) if layers else None
        raise load_failed(
            f"The file does not fit {signature.name}"
            + (f"; it seems to be for {seems}." if seems else "."),
            "misfit" if layers else "no_layers",
            seems=seems,
        )
    return _by_layers(header, layers, signature.family)


def _by_layers(header: SafetensorsHeader, layers: Layers, family: str) -> LoraInspection:
    slots = {slot for layer in layers.values() for slot in layer}
    ranks = [shape[0] for layer in layers.values() for slot, shape in layer.items()
             if slot in ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") and shape]  # fmt: skip
    algorithm = next(
        (name for mark, name in (("hada_w1_a", "loha"), ("lora_down", "lora"), ("diff", "full"))
         if mark in slots),
        "lokr",
    )  # fmt: skip
    return LoraInspection(
        base_model=family,
        algorithm=algorithm,
        format="unknown",
        rank=max(ranks, default=0),
        modules=len(layers),
        text_encoder=any("te" in stem[:8] or stem.startswith("text_") for stem in layers),
        trigger_words=trigger_words(header.metadata),
        **_facts(header),
    )
