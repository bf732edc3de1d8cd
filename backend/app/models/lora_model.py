"""The files of the library, LoRAs and embeddings, and what their headers said."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import Base, Created, Json, JsonList, LongText, Moment, UuidPk
from app.models.image import Image
from sdxl_contract.lora.few_steps import FewSteps, few_steps

# What files call themselves by, in the metadata that is kept.
_CALLS_ITSELF = ("modelspec.title", "ss_output_name", "ss_training_comment")


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
    default_scale: Mapped[float] = mapped_column(default=1.0, server_default="1")
    cover_image_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("content_piece.id", ondelete="SET NULL"), index=True
    )
    created_at: Mapped[Created]

    cover: Mapped[Image | None] = relationship(lazy="selectin")

    @property
    def _few_steps(self) -> FewSteps | None:
        """What the file, or else whoever named it, says of how it is to be drawn with."""
        told = [str(self.file_metadata.get(key, "")) for key in _CALLS_ITSELF]
        return few_steps(told) or few_steps([self.name])

    @property
    def suggested_scheduler(self) -> str | None:
        """The sampler that it wants; None where it does not say."""
        hint = self._few_steps
        return None if hint is None else hint.scheduler.value

    @property
    def suggested_steps(self) -> int | None:
        """How many steps it was made for."""
        hint = self._few_steps
        return None if hint is None else hint.steps

    @property
    def suggested_cfg(self) -> float | None:
        """The CFG that it wants."""
        hint = self._few_steps
        return None if hint is None else hint.cfg


class Embedding(Base):
    """A textual inversion: `name` is the word that stands for it, one for each owner and file."""

    __tablename__ = "embedding"
    __table_args__ = (
        UniqueConstraint("owner", "sha256"),
        Index(None, "object_key"),
        Index("uq_embedding_owner_word", "owner", text("lower(name)"), unique=True),
    )

    id: Mapped[UuidPk]
    owner: Mapped[str]
    name: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    object_key: Mapped[str]
    vectors: Mapped[int]
    created_at: Mapped[Created]


class LoraSource(Base):
    """Which LoRA a URL led to. Of the URL only a digest is kept: it may hold a signature."""

    __tablename__ = "lora_source"

    owner: Mapped[str] = mapped_column(primary_key=True)
    url_sha256: Mapped[str] = mapped_column(primary_key=True)
    lora_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("lora_model.id", ondelete="CASCADE"), index=True
    )
    etag: Mapped[str | None]
    looked_at: Mapped[Moment]
