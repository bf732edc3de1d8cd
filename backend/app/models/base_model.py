"""The worker's last description of its base model, kept for when it is down."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Json, Moment


class SeenBaseModel(Base):
    """One row per endpoint: the whole `GET /health?include=modules` answer."""

    __tablename__ = "seen_base_model"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    health: Mapped[Json]
    seen_at: Mapped[Moment]
