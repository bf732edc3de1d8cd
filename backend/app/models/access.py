"""Keys that callers prove themselves with, and pages that signed in with one; of both, and of a
page's cookie, only the SHA-256 is kept."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Moment, UuidPk


class ApiKey(Base):
    """`owner` is whose LoRAs, avatars and contents the key sees."""

    __tablename__ = "api_key"
    __table_args__ = (UniqueConstraint("key_sha256"),)

    id: Mapped[UuidPk]
    owner: Mapped[str]
    name: Mapped[str]
    key_sha256: Mapped[str]
    created_at: Mapped[Created]
    revoked_at: Mapped[Moment | None]
    # Its own limits; where unset, those of the settings.
    requests_per_minute: Mapped[int | None]
    max_open_contents: Mapped[int | None]
    daily_budget_usd: Mapped[float | None]
    # The key that made it over HTTP: revoked with it, and its calls are counted as that one's.
    made_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_key.id"), index=True)


class PageSession(Base):
    """A page that signed in. Ends at `expires_at`, when it is signed out, or with its key."""

    __tablename__ = "page_session"
    __table_args__ = (UniqueConstraint("token_sha256"),)

    id: Mapped[UuidPk]
    api_key_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("api_key.id", ondelete="CASCADE"), index=True
    )
    token_sha256: Mapped[str]
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]
