"""`<lora:name:0.8>` in a prompt: which LoRAs are meant, and the prompt without the tags.

Must not know: which LoRAs there are.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from app.schemas.content import LoraUse
from sdxl_contract import limits
from sdxl_contract.errors import InvalidRequest

_TAG = re.compile(r"<(\w{1,32}):([^<>]{1,400})>")
_KINDS = frozenset({"lora", "lyco"})


class Tagged(NamedTuple):
    """A prompt without its tags, and their LoRAs."""

    prompt: str
    loras: list[LoraUse]


def read_tags(prompt: str) -> Tagged:
    """The tags of `prompt`; tags of other kinds stay where they are.

    Raises:
        InvalidRequest: a tag cannot be applied as it is written.
    """
    loras: list[LoraUse] = []

    def take(match: re.Match[str]) -> str:
        if match[1].lower() not in _KINDS:
            return match[0]
        loras.append(_read(match[0], match[2].split(":")))
        return ""

    plain = _TAG.sub(take, prompt)
    if loras:
        plain = re.sub(r"[ \t]{2,}", " ", plain).strip()
    return Tagged(plain, loras)


def _read(tag: str, parts: list[str]) -> LoraUse:
    name, places, named = parts[0].strip(), [], {}
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if equals:
            named[key.strip().lower()] = value
        else:
            places.append(part)
    if not name or len(name) > 200:
        raise _wrong(tag, "a tag names its LoRA, as in <lora:name:0.8>")
    if len(places) > 2 or "dyn" in named:
        raise _wrong(tag, "a LoRA's rank cannot be changed (dyn)")
    if unknown := set(named) - {"te", "unet"}:
        raise _wrong(tag, f"{sorted(unknown)[0][:20]} is not known: te and unet are")
    text_encoder = _number(tag, named.get("te", places[0] if places else "1"))
    unet = _number(tag, named.get("unet", places[1] if len(places) > 1 else str(text_encoder)))
    if text_encoder != unet:
        raise _wrong(tag, "one weight is applied to the text encoder and the UNet alike")
    return LoraUse(name=name, scale=unet)


def _number(tag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _wrong(tag, "a weight is a number, as in <lora:name:0.8>") from None
    if not limits.SCALE_MIN <= number <= limits.SCALE_MAX:  # also for nan
        raise _wrong(tag, f"a weight is from {limits.SCALE_MIN:g} to {limits.SCALE_MAX:g}")
    return number


def _wrong(tag: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"prompt: {tag[:100]}: {what}", details={"field": "prompt"})
