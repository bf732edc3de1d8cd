"""Finished pictures, those to draw from, and files on their way."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Moment, UuidPk


class Image(Base):
    """Its bytes lie in the object store under `object_key`; sides in px."""

    __tablename__ = "content_piece"
    __table_args__ = (
        UniqueConstraint("generation_id", "position"),
        UniqueConstraint("object_key"),
        UniqueConstraint("thumbnail_key"),
        Index("ix_content_piece_sha256", "sha256"),
        Index(
            "ix_content_piece_watermark",
            "watermark",
            postgresql_where=text("watermark IS NOT NULL"),
        ),
        Index(
            "ix_content_piece_starred",
            "generation_id",
            postgresql_where=text("starred_at IS NOT NULL"),
        ),
        Index(
            "ix_content_piece_bin", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")
        ),
    )

    id: Mapped[UuidPk]
    generation_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("generation.id", ondelete="CASCADE")
    )
    position: Mapped[int]
    object_key: Mapped[str]
    thumbnail_key: Mapped[str | None]  # None: the picture is small itself
    seed: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    sha256: Mapped[str]  # before it was signed: what the same request always gives
    file_sha256: Mapped[str | None]  # of the stored file; None: the same
    likeness: Mapped[int | None] = mapped_column(BigInteger)  # see services.inputs.likeness
    watermark: Mapped[str | None]  # in its pixels: see marking.watermark.methods.Mark
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str]
    starred_at: Mapped[Moment | None]
    deleted_at: Mapped[Moment | None]  # in the bin since then
    created_at: Mapped[Created]

    @property
    def keys(self) -> list[str]:
        """Every object that is this picture's."""
        return [key for key in (self.object_key, self.thumbnail_key) if key is not None]


class InputImage(Base):
    """A picture that somebody uploaded to draw from; one for each owner and SHA-256."""

    __tablename__ = "input_image"
    __table_args__ = (
        UniqueConstraint("owner", "sha256"),
        Index(None, "object_key"),
        Index(None, "used_at"),
    )

    id: Mapped[UuidPk]
    owner: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    media_type: Mapped[str]
    object_key: Mapped[str]
    # None: none that tells it apart, or it came before this was kept.
    likeness: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[Created]
    used_at: Mapped[Moment]  # by the newest content that was accepted with it


class SentFile(Base):
    """A file that its sender names before it has come: a picture or a LoRA, once it is here."""

    __tablename__ = "sent_file"
    __table_args__ = (Index(None, "owner", "created_at"),)

    id: Mapped[UuidPk]
    owner: Mapped[str]
    key_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_key.id", ondelete="CASCADE"))
    token_sha256: Mapped[str]  # of what whoever brings it shows in place of a key
    name: Mapped[str]
    input_image_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("input_image.id", ondelete="CASCADE"), index=True
    )
    lora_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("lora_model.id", ondelete="CASCADE"), index=True
    )
    created_at: Mapped[Created]

    @property
    def is_here(self) -> bool:
        """Whether it has come."""
        return self.input_image_id is not None or self.lora_id is not None
