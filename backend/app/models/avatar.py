"""What an owner keeps to say again: avatars, each with the LoRA that draws it; styles, lists."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import Base, Created, JsonList, LongText, Moment, UuidPk
from app.models.image import Image
from app.models.lora_model import LoraModel


class Avatar(Base):
    """Its prompt goes before the caller's; its LoRA is applied at `lora_scale`."""

    __tablename__ = "avatar"
    __table_args__ = (Index(None, "owner", "created_at"),)

    id: Mapped[UuidPk]
    owner: Mapped[str]
    name: Mapped[str]
    base_prompt: Mapped[LongText]
    negative_prompt: Mapped[LongText]
    lora_model_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("lora_model.id", ondelete="RESTRICT"), index=True
    )
    lora_scale: Mapped[float]
    scheduler: Mapped[str | None]  # by the contract's name; None: the model's own
    cover_image_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("content_piece.id", ondelete="SET NULL"), index=True
    )
    created_at: Mapped[Created]
    updated_at: Mapped[Moment]

    lora: Mapped[LoraModel | None] = relationship(lazy="raise")
    cover: Mapped[Image | None] = relationship(lazy="selectin")


class PromptStyle(Base):
    """What is said around a prompt: where it has `{prompt}` the prompt stands, else after it."""

    __tablename__ = "prompt_style"

    owner: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    prompt: Mapped[LongText]
    negative_prompt: Mapped[LongText]


class Wildcard(Base):
    """Lines of which one stands in the place of `__name__`."""

    __tablename__ = "wildcard"

    owner: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)  # in small letters
    lines: Mapped[JsonList]
