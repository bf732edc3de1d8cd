"""A webhook, its messages and their attempts as the API takes and shows them."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.models import DeliveryState, Webhook
from app.models.webhook import Signing
from app.schemas.common import Description

_URL = Field(
    min_length=9,
    max_length=2048,
    description="https on port 443, to a public address",
    examples=["https://example.com/hooks/pictures"],
)


class EventType(StrEnum):
    """What a webhook can be told of."""

    SUCCEEDED = "content.succeeded"
    FAILED = "content.failed"
    CANCELLED = "content.cancelled"
    TAKEN_DOWN = "content.taken_down"
    LORA_TAKEN_DOWN = "lora.taken_down"
    EMBEDDING_TAKEN_DOWN = "embedding.taken_down"


TEST_TYPE = "webhook.test"
Events = Annotated[
    list[EventType],
    Field(min_length=1, max_length=len(EventType), description="what it is told of"),
]


class WebhookIn(BaseModel):
    """`POST /webhooks`."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, _URL]
    events: Events = Field(default_factory=lambda: list(EventType))
    description: Description = ""
    signing: Signing = Field(default=Signing.HMAC, description="hmac, or ed25519")


class WebhookPatch(BaseModel):
    """`PATCH /webhooks/{id}`: what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, _URL] | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: bool | None = None


class WebhookOut(BaseModel):
    """A webhook. Its secret is shown when it is made, and when it is made anew."""

    id: uuid.UUID
    url: str
    events: list[str]
    description: str
    signing: Signing
    enabled: bool
    disabled_reason: str | None
    failing_since: datetime | None
    created_at: datetime


class WebhookWithSecret(WebhookOut):
    """With what its receiver checks messages with: `whsec_…`, or the public key `whpk_…`."""

    secret: str


class DeliveryOut(BaseModel):
    """A message."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    content_id: uuid.UUID | None
    type: str
    state: DeliveryState
    attempts: int
    next_at: datetime | None
    created_at: datetime


class AttemptOut(BaseModel):
    """One attempt at sending it."""

    model_config = ConfigDict(from_attributes=True)

    attempt: int
    status: int | None = Field(description="HTTP status; null where there was no answer")
    error: str | None
    head: str | None = Field(description="the first bytes of the answer's body")
    milliseconds: int
    created_at: datetime


class DeliveryWithAttempts(DeliveryOut):
    """A message, and how its attempts went."""

    log: list[AttemptOut]


def webhook_out(webhook: Webhook) -> WebhookOut:
    """`webhook` without its secret."""
    return WebhookOut(
        id=webhook.id,
        url=webhook.url,
        events=webhook.events,
        description=webhook.description,
        signing=Signing(webhook.signing),
        enabled=webhook.is_enabled,
        disabled_reason=webhook.disabled_reason,
        failing_since=webhook.failing_since,
        created_at=webhook.created_at,
    )
