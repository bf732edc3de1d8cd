"""What was taken down: a record without the pictures."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Index
from sqlalchemy.orm import Mapped

from app.models.base import Base, Created, JsonList, LongText, UuidPk


class Kind(StrEnum):
    """What an order names."""

    CONTENT = "content"  # an id: its pictures, and all that are the same or nearly so
    PICTURE = "picture"  # a SHA-256, of a picture or of its signed file
    NEAR = "near"  # a likeness: 16 hexadecimal digits
    LORA = "lora"  # a SHA-256 of a LoRA's file


class Takedown(Base):
    """One order: what it named, why, and what was removed for it.

    `kind` is content, picture, near or lora; `value` the content's id, a SHA-256, or a perceptual
    hash in hexadecimal.
    """

    __tablename__ = "takedown"
    __table_args__ = (Index("ix_takedown_value", "value"),)

    id: Mapped[UuidPk]
    kind: Mapped[str]
    value: Mapped[str]
    reason: Mapped[LongText]
    contents: Mapped[JsonList]  # ids of what was removed
    created_at: Mapped[Created]
