"""Inspects a LoRA file by its header alone: what it is, and whether it fits a base model.

Duty: the one entry for whoever has a file and a signature but neither torch nor the model (the
backend, at upload). Reads 8 bytes and the header, never a tensor.
Must not know: storage, HTTP, torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.identify import (
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

MAX_TRIGGER_WORDS = 12
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


def inspect_lora_file(file: Readable, size: int, signature: BaseModelSignature) -> LoraInspection:
    """What the LoRA in `file` is, checked against `signature`.

    Where `signature.modules` is given, each layer must exist and fit exactly. Where it is empty,
    the built-in SDXL modules stand in if the signature has SDXL's widths; else the widths of the
    cross-attention and of the text encoders decide.

    Args:
        file: binary, at the file's first byte; read forward only, the header only; stays open.
        size: bytes of the whole file.
        signature: the loaded base model's.

    Raises:
        LoraLoadFailed: the file is no LoRA or does not fit; the message says what it seems to be,
            `details["reason"]` why in one word.
    """
    header = read_header(file, size)
    return inspect_header(header, signature)


def inspect_header(header: SafetensorsHeader, signature: BaseModelSignature) -> LoraInspection:
    """`inspect_lora_file` for a header that was read already."""
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
    slots = {slot for layer in layers.values() for slot in layer}
    ranks = [shape[0] for layer in layers.values() for slot, shape in layer.items()
             if slot in ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") and shape]  # fmt: skip
    algorithm = next(
        (name for mark, name in (("hada_w1_a", "loha"), ("lora_down", "lora"), ("diff", "full"))
         if mark in slots),
        "lokr",
    )  # fmt: skip
    return LoraInspection(
        base_model=signature.family,
        algorithm=algorithm,
        format="unknown",
        rank=max(ranks, default=0),
        modules=len(layers),
        text_encoder=any("te" in stem[:8] or stem.startswith("text_") for stem in layers),
        trigger_words=trigger_words(header.metadata),
        **_facts(header),
    )


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Words that probably call up what the LoRA learnt, the likeliest first.

    `modelspec.trigger_phrase` says so; else the tags that nearly every training caption had,
    then the folders' names (kohya's `<repeats>_<words>`). All untrusted: only for showing.
    """
    found: list[str] = []
    phrase = metadata.get("modelspec.trigger_phrase", "")
    found += [part.strip() for part in phrase.split(",")]
    images = _image_count(metadata.get("ss_dataset_dirs", ""))
    found += _frequent_tags(metadata.get("ss_tag_frequency", ""), images)
    words: dict[str, None] = {}
    for word in found:
        clean = shown(word.strip(), 60)
        if clean and clean.lower() not in {known.lower() for known in words}:
            words[clean] = None
    return list(words)[:MAX_TRIGGER_WORDS]


def _json_object(text: str) -> dict[str, object]:
    """What `text` holds as JSON; empty where it is no object."""
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int:
    """A plausible positive count, else 0."""
    return value if type(value) is int and 0 < value < 2**31 else 0


def _image_count(text: str) -> int:
    """Images of all training folders (kohya's `ss_dataset_dirs`); 0 where it is not said."""
    folders = _json_object(text).values()
    return sum(_count(folder.get("img_count")) for folder in folders if isinstance(folder, dict))


def _frequent_tags(text: str, images: int) -> list[str]:
    """Tags of at least half of the captions, at most 8.

    Where the number of images is not known, the most frequent tag stands for it.
    """
    counts: Counter[str] = Counter()
    for tags in _json_object(text).values():
        if not isinstance(tags, dict):
            continue
        for tag, value in tags.items():
            if count := _count(value):
                counts[tag.strip()] += count
    most = max(images, max(counts.values(), default=0))
    return [tag for tag, count in counts.most_common(8) if 2 * count >= most]
