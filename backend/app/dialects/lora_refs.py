"""LoRAs as other services name them: a URL, a Hugging Face id, a file that was sent, a name.

Must not know: in which field they stand, but for errors.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from fastapi import Request

from app.api.deps import Caller, Services
from app.dialects.asking import own_base
from app.schemas.common import storable
from app.schemas.content import LoraUse
from app.services.lora_names import NAME_MAX_CHARS
from sdxl_contract.errors import InvalidRequest

FILES_PATH = "/replicate/v1/files/"
STORED_PATH = "/fal/files/"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_FILE = "pytorch_lora_weights.safetensors"  # what diffusers calls the file that it writes


class LoraWish(NamedTuple):
    """One LoRA as a call names it. `file`: which one of a Hugging Face repository."""

    text: str
    scale: float
    field: str
    file: str | None = None


async def find_wishes(
    request: Request, services: Services, caller: Caller, wishes: Sequence[LoraWish]
) -> list[LoraUse]:
    """The wishes as LoRAs of the caller's library, which holds from now on what a URL led to.

    Raises:
        InvalidRequest, NotFound, LoraDownloadFailed, LoraLoadFailed, TooLarge, RateLimited:
            one cannot be had.
    """
    return [await _find(request, services, caller, wish) for wish in wishes]


async def _find(request: Request, services: Services, caller: Caller, wish: LoraWish) -> LoraUse:
    text = wish.text.strip()
    if not text:
        raise InvalidRequest(f"{wish.field}: must name a LoRA", details={"field": wish.field})
    sent = _sent_file(request, services, text)
    stored = stored_file(request, services, text)
    if stored is not None:
        sent = (await services.sent_files.get(caller.owner, stored, wish.field)).lora_id
        if sent is None:
            raise InvalidRequest(
                f"{wish.field}: this file is a picture", details={"field": wish.field}
            )
    if sent is not None:
        return LoraUse(lora_model_id=sent, scale=wish.scale)
    url = text if text.startswith(("https://", "http://", "data:")) else None
    if url is None and _HUB_ID.fullmatch(text):
        names = {lora.name for lora in await services.loras.list(caller.owner)}
        if text not in names:
            url = f"https://huggingface.co/{text}/resolve/main/{wish.file or _HUB_FILE}"
    if url is None:
        return LoraUse(name=text[:NAME_MAX_CHARS], scale=wish.scale)
    lora = await services.lora_urls.lora_at(caller.owner, url, wish.field)
    return LoraUse(lora_model_id=lora.id, scale=wish.scale)


def lora_fields(wishes: Sequence[LoraWish]) -> dict[str, str]:
    """Our names of the wishes' fields, which stand before other LoRAs, and the caller's."""
    return {
        f"loras[{place}].{name}": wish.field
        for place, wish in enumerate(wishes)
        for name in ("name", "scale", "lora_model_id")
    }


def stored_file(request: Request, services: Services, url: str) -> str | None:
    """The id in `url`, where it is the address of a file that was sent as fal's clients do."""
    for base in (own_base(request, services.settings), services.settings.base_url):
        if url.startswith(base + STORED_PATH):
            return url.removeprefix(base + STORED_PATH)
    return None


def name_of_file(text: str | None) -> str:
    """What a LoRA is called that came as a file of this name."""
    name = (text or "").replace("\x00", "").removesuffix(".safetensors").strip()
    try:
        return storable(name)[:NAME_MAX_CHARS].strip() or "file"
    except ValueError:
        return "file"


def _sent_file(request: Request, services: Services, url: str) -> uuid.UUID | None:
    """The LoRA that `url` is the address of, where it is one of this server's files."""
    for base in (own_base(request, services.settings), services.settings.base_url):
        if url.startswith(base + FILES_PATH):
            try:
                return uuid.UUID(url.removeprefix(base + FILES_PATH))
            except ValueError:
                return None
    return None
