"""How much each owner has had of the queue."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class QueueTurn(Base):
    """Where an owner is in the queue's own time, which pictures move on.

    The owner whose `ended` is least is next. Who was away joins at the present (the largest
    `began` of all): time not used gives no credit.
    """

    __tablename__ = "queue_turn"

    owner: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float] = mapped_column(default=1.0, server_default="1")  # 2: twice as often
    began: Mapped[float] = mapped_column(default=0.0, server_default="0")  # of its last content
    ended: Mapped[float] = mapped_column(default=0.0, server_default="0")
