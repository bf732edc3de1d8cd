"""A LoRA file of the library, and what its header said."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Json, JsonList, LongText, UuidPk


class LoraModel(Base):
    """One file per owner and SHA-256; the bytes lie in the object store under `object_key`."""

    __tablename__ = "lora_model"
    __table_args__ = (
        UniqueConstraint("owner", "sha256"),
        Index(None, "object_key"),
        Index(None, "owner", "name"),
    )

    id: Mapped[UuidPk]
    owner: Mapped[str]
    name: Mapped[str]
    description: Mapped[LongText]
    tags: Mapped[JsonList]
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    object_key: Mapped[str]
    base_model: Mapped[str]
    algorithm: Mapped[str]
    format: Mapped[str]
    rank: Mapped[int]
    modules: Mapped[int]
    text_encoder: Mapped[bool]
    trigger_words: Mapped[JsonList]
    strays: Mapped[JsonList]
    parameter_count: Mapped[int] = mapped_column(BigInteger)
    dtype: Mapped[str]
    file_metadata: Mapped[Json]
    created_at: Mapped[Created]
