"""Whom to tell what happens to contents, what was told, and how each attempt went."""

from __future__ import annotations

import uuid
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, JsonList, LongText, Moment, UuidPk


class Signing(StrEnum):
    """How a webhook's messages are signed."""

    HMAC = "hmac"
    ED25519 = "ed25519"


class DeliveryState(StrEnum):
    """Where a message is."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


class Kind(StrEnum):
    """Whose messages a webhook's are."""

    OWN = "own"
    REPLICATE = "replicate"
    FAL = "fal"


class Webhook(Base):
    """A URL of its owner's. `secret` signs; the previous one does so too until a moment.

    Of another kind than `own` each owner has one at most: the secret for messages to URLs that
    calls of that dialect name, each in its own message.
    """

    __tablename__ = "webhook"
    __table_args__ = (
        Index(None, "owner", "created_at"),
        Index(
            "uq_webhook_dialect",
            "owner",
            "kind",
            unique=True,
            postgresql_where=text("kind <> 'own'"),
        ),
    )

    id: Mapped[UuidPk]
    owner: Mapped[str]
    kind: Mapped[str] = mapped_column(default=Kind.OWN.value, server_default=Kind.OWN.value)
    url: Mapped[LongText]
    description: Mapped[LongText]
    events: Mapped[JsonList]
    signing: Mapped[str]
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_until: Mapped[Moment | None]
    is_enabled: Mapped[bool]
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[Moment | None]  # of the first failure after the last success
    created_at: Mapped[Created]


class WebhookDelivery(Base):
    """One message to one webhook: the outbox. Written by a trigger as its content ends."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'delivered', 'failed')", name="state"),
        Index(
            "ix_webhook_delivery_due",
            "webhook_id",
            "next_at",
            postgresql_where=text("state = 'waiting'"),
        ),
        Index(None, "webhook_id", "created_at", "id"),
        Index(None, "created_at"),
    )

    id: Mapped[UuidPk]  # the message's: the same at each attempt
    webhook_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"))
    content_id: Mapped[uuid.UUID | None]  # no foreign key: the message outlives its content
    type: Mapped[str]
    url: Mapped[LongText | None]  # where it is not its webhook's
    state: Mapped[str]
    attempts: Mapped[int]  # the fence
    next_at: Mapped[Moment | None]  # not before then; while it is being sent, when that is over
    created_at: Mapped[Created]


class WebhookAttempt(Base):
    """How one attempt went."""

    __tablename__ = "webhook_attempt"
    __table_args__ = (Index(None, "delivery_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    delivery_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("webhook_delivery.id", ondelete="CASCADE")
    )
    attempt: Mapped[int]
    status: Mapped[int | None]  # HTTP's; None where there was no answer
    error: Mapped[str | None]
    head: Mapped[str | None]  # of the answer's body
    milliseconds: Mapped[int]
    created_at: Mapped[Created]
