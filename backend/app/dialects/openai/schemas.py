"""What OpenAI's clients send and read. Keys that are not known are ignored, as OpenAI does."""

from __future__ import annotations

import json
import re
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.dialects.asking import read_as
from app.dialects.lora_tags import read_tags
from app.schemas.common import NUMBER, Storable
from app.schemas.content import Cfg, GenerateIn, LoraUse, Seed, Steps
from sdxl_contract import limits
from sdxl_contract.errors import InvalidRequest

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
Count = Annotated[int, Field(ge=1, le=limits.MAX_IMAGES), NUMBER]


def _loras(value: object) -> object:
    """LoRAs as a list, or as one JSON text, as forms and environment variables hold them."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("must be a list of {name, scale}") from None
    if isinstance(value, list):
        return [{"name": item} if isinstance(item, str) else item for item in value]
    return value


Loras = Annotated[list[LoraUse], Field(max_length=limits.MAX_LORAS), BeforeValidator(_loras)]


class ImagesIn(BaseModel):
    """`POST /images/generations`: OpenAI's fields, then ours."""

    model_config = ConfigDict(extra="ignore")

    prompt: Storable
    model: Storable | None = None
    n: Count | None = None
    size: str | None = Field(default=None, description="auto, or WIDTHxHEIGHT in px")
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100), NUMBER] | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = (
        None
    )
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3), NUMBER] | None = None

    seed: Seed | None = None
    negative_prompt: Storable | None = None
    steps: Steps | None = None
    cfg: Cfg | None = None
    scheduler: Storable | None = None
    loras: Loras | None = None
    avatar_id: uuid.UUID | None = None

    @property
    def wants_url(self) -> bool:
        """Whether pictures are answered by URL. Unasked only where OpenAI's model did so."""
        if self.response_format is not None:
            return self.response_format == "url"
        return (self.model or "").startswith("dall-e")

    def as_asked(self) -> GenerateIn:
        """The same wish in the API's own words.

        Raises:
            InvalidPrompt, InvalidRequest: a field is wrong, or cannot be had.
        """
        if self.background == "transparent":
            raise InvalidRequest(
                "background: pictures have no transparency: send opaque or auto",
                details={"field": "background"},
            )
        tagged = read_tags(self.prompt)
        values: dict[str, Any] = {
            "prompt": tagged.prompt,
            "num_images": self.n,
            "seed": self.seed,
            "negative_prompt": self.negative_prompt,
            "steps": self.steps,
            "cfg": self.cfg,
            "scheduler": self.scheduler,
            # Pictures that go out as base64 are drawn as PNG and encoded as asked on their way.
            "output_format": self.output_format if self.wants_url else None,
            "avatar_id": self.avatar_id,
            **dict(zip(("width", "height"), _size(self.size), strict=True)),
        }
        loras = [*(self.loras or []), *tagged.loras]
        if loras:
            values["loras"] = [use.model_dump(exclude_none=True) for use in loras]
        return read_as(GenerateIn, {k: v for k, v in values.items() if v is not None})


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size is None or size == "auto":
        return None, None
    match = _SIZE.fullmatch(size)
    if match is None:
        raise InvalidRequest(
            "size: must be auto or WIDTHxHEIGHT, such as 1024x1024", details={"field": "size"}
        )
    return int(match[1]), int(match[2])
