"""A page that signed in with an API key; only the SHA-256 of its cookie is kept."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Moment, UuidPk


class PageSession(Base):
    """Ends at `expires_at`, when it is signed out, or with its key."""

    __tablename__ = "page_session"
    __table_args__ = (UniqueConstraint("token_sha256"),)

    id: Mapped[UuidPk]
    api_key_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("api_key.id", ondelete="CASCADE"), index=True
    )
    token_sha256: Mapped[str]
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]
