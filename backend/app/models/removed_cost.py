"""What contents had cost that were deleted since, so that deleting gives no money back."""

from __future__ import annotations

from datetime import date

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class RemovedCost(Base):
    """One row per owner and day (UTC) on which such contents were asked for."""

    __tablename__ = "removed_cost"

    owner: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    usd: Mapped[float]
