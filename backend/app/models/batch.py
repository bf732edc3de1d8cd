"""Several contents asked for at once."""

from __future__ import annotations

from sqlalchemy.orm import Mapped

from app.models.base import Base, Created, Json, UuidPk


class Batch(Base):
    """What was asked; its contents point back at it."""

    __tablename__ = "batch"

    id: Mapped[UuidPk]
    owner: Mapped[str]
    total: Mapped[int]
    request: Mapped[Json]
    created_at: Mapped[Created]
