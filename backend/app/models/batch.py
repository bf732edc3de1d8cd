"""Several contents asked for at once."""

from __future__ import annotations

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped

from app.models.base import Base, Created, Json, UuidPk


class Batch(Base):
    """What was asked; its contents point back at it."""

    __tablename__ = "batch"
    __table_args__ = (
        Index(None, "owner", "created_at", "id"),
        Index(
            "uq_batch_owner_idempotency_key",
            "owner",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    id: Mapped[UuidPk]
    owner: Mapped[str]
    total: Mapped[int]
    request: Mapped[Json]
    request_sha256: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    created_at: Mapped[Created]
