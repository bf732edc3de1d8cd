"""Pictures gathered by a person: boards, and what is shown to others for a while."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Moment, UuidPk


class Board(Base):
    """A named collection of one owner's pictures."""

    __tablename__ = "board"
    __table_args__ = (UniqueConstraint("owner", "name"),)

    id: Mapped[UuidPk]
    owner: Mapped[str]
    name: Mapped[str]
    created_at: Mapped[Created]


class BoardImage(Base):
    """That a picture is on a board."""

    __tablename__ = "board_image"

    board_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("board.id", ondelete="CASCADE"), primary_key=True
    )
    image_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("content_piece.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    created_at: Mapped[Created]


class Share(Base):
    """A picture that whoever has the link may see until `expires_at`; the link is not kept."""

    __tablename__ = "share"

    id: Mapped[UuidPk]
    owner: Mapped[str]
    token_sha256: Mapped[str] = mapped_column(unique=True)
    image_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("content_piece.id", ondelete="CASCADE"), index=True
    )
    with_prompt: Mapped[bool]
    expires_at: Mapped[Moment] = mapped_column(index=True)
    created_at: Mapped[Created]
