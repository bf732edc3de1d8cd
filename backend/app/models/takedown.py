"""What was taken down: a record without the pictures."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, JsonList, LongText, UuidPk

# By how much a picture's proportions may differ from those that it is known by.
SHAPE_SLACK = 0.022


def shape_of(width: float, height: float) -> float:
    """Proportions, however the picture is turned: the longer side by the shorter one."""
    return max(width, height) / min(width, height)


class Known(NamedTuple):
    """By what a picture is known again: near this likeness and, where given, of this shape."""

    likeness: int
    bits: int  # that may differ
    shape: float | None = None  # None: any


class Kind(StrEnum):
    """What an order names."""

    CONTENT = "content"  # an id: its pictures, and all that are the same or nearly so
    PICTURE = "picture"  # a SHA-256, of a picture or of its signed file
    NEAR = "near"  # a likeness: 16 hexadecimal digits
    LORA = "lora"  # a SHA-256 of a LoRA's or an embedding's file


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


class TakenDownPicture(Base):
    """What is kept of a picture that an order named: by either value it is known again.

    `likeness` only where it tells pictures apart; `bits` and `shape` as in `Known`.
    """

    __tablename__ = "taken_down_picture"
    __table_args__ = (
        Index("ix_taken_down_picture_takedown_id", "takedown_id"),
        Index("ix_taken_down_picture_sha256", "sha256"),
    )

    id: Mapped[UuidPk]
    takedown_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("takedown.id", ondelete="CASCADE"))
    sha256: Mapped[str | None]  # before it was signed, or of its signed file
    likeness: Mapped[int | None] = mapped_column(BigInteger)
    bits: Mapped[int] = mapped_column(server_default="5")
    shape: Mapped[float | None]
