"""What limits are counted by: calls, turns in the queue, and what removed contents had cost."""

from __future__ import annotations

from datetime import date

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, LongText, Moment

# What contents of a paused queue wait for.
PAUSED = {"reason": "queue_paused", "message": "the queue was paused by whom it belongs to"}


class CallRate(Base):
    """At `free_at` the caller has all its calls again; each call moves it on by one call's share.

    `caller` is a key's id, or the local owner's name where no key is needed.
    """

    __tablename__ = "call_rate"

    caller: Mapped[str] = mapped_column(primary_key=True)
    free_at: Mapped[Moment]


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
    loras: Mapped[LongText | None]  # hashes of its last content's, in order; None: it had none
    paused_at: Mapped[Moment | None]  # since when nothing more of its is begun


class RemovedCost(Base):
    """One row per owner and day (UTC) on which such contents were asked for."""

    __tablename__ = "removed_cost"

    owner: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    usd: Mapped[float]
