"""What the server answers. Fields of later versions are kept, too, as attributes."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item")
FINAL = frozenset({"succeeded", "failed", "cancelled"})


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class LoraUse(BaseModel):
    """A LoRA of the library, by `name` or by `lora_model_id`, and how strongly to apply it."""

    model_config = ConfigDict(protected_namespaces=())

    lora_model_id: uuid.UUID | None = None
    name: str | None = None
    scale: float = 1.0


class Image(_Answer):
    """A picture; its URLs expire. By its id others are drawn from it."""

    id: uuid.UUID | None = None
    url: str
    thumbnail_url: str | None = None
    seed: int
    width: int
    height: int
    sha256: str


class Failure(_Answer):
    """Why a content failed."""

    code: str
    message: str


class Cost(_Answer):
    """What it cost; `usd` is None on a device without a price."""

    usd: float | None = None
    gpu: str | None = None
    seconds: float
    parts: dict[str, Any] | None = None


class Content(_Answer):
    """What was asked for, and what became of it."""

    id: uuid.UUID
    status: str
    prompt: str
    negative_prompt: str = ""
    avatar_id: uuid.UUID | None = None
    batch_id: uuid.UUID | None = None
    image_url: str | None = None
    images: list[Image] = []
    parameters: dict[str, Any] = {}
    loras: list[dict[str, Any]] = []
    timings: dict[str, float] | None = None
    cost: Cost | None = None
    error: Failure | None = None
    model_clean: bool | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINAL


class Lora(_Answer):
    """A LoRA of the library."""

    id: uuid.UUID
    name: str
    description: str = ""
    tags: list[str] = []
    sha256: str
    size_bytes: int
    base_model: str
    algorithm: str
    format: str
    rank: int
    modules: int
    text_encoder: bool
    trigger_words: list[str] = []
    strays: list[str] = []
    created_at: datetime


class Batch(_Answer):
    """How many contents of a batch are in which state."""

    batch_id: uuid.UUID
    total: int
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    created_at: datetime


class Webhook(_Answer):
    """A webhook; `secret` is there where it was just made."""

    id: uuid.UUID
    url: str
    events: list[str]
    description: str = ""
    signing: str
    enabled: bool
    disabled_reason: str | None = None
    failing_since: datetime | None = None
    created_at: datetime
    secret: str | None = None


class Key(_Answer):
    """An API key; `key` is there where it was just made."""

    id: uuid.UUID
    name: str
    created_at: datetime
    current: bool
    made_by: uuid.UUID | None = None
    key: str | None = None


class Verification(_Answer):
    """What a picture says of itself, and whether that is so."""

    media_type: str
    file_sha256: str
    unsigned_sha256: str | None = None
    manifest: dict[str, Any] | None = None
    matches_receipt: bool | None = None
    watermark: dict[str, Any] | None = None
    parameters: str | None = None
    summary: str

    @property
    def state(self) -> str:
        """`trusted`, `valid`, `invalid`, or `unsigned` where there is no manifest."""
        return "unsigned" if self.manifest is None else str(self.manifest["state"])


class Comparison(_Answer):
    """A picture held against what was drawn from its receipt."""

    content_id: uuid.UUID
    is_equal: bool
    same_file: bool
    same_pixels: bool | None = None
    pixels_differing: int | None = None
    largest_difference: int | None = None
    summary: str


class Page(_Answer, Generic[Item]):
    """Some of a list; `next_cursor` is there where more follows."""

    items: list[Item]
    next_cursor: str | None = None


class Event(BaseModel):
    """Something that happened to a content: `type` and its `data`."""

    id: str | None = None
    type: str
    data: dict[str, Any]
