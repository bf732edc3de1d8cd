"""How many calls a key has made of late, as one moment."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Moment


class CallRate(Base):
    """At `free_at` the caller has all its calls again; each call moves it on by one call's share.

    `caller` is a key's id, or the local owner's name where no key is needed.
    """

    __tablename__ = "call_rate"

    caller: Mapped[str] = mapped_column(primary_key=True)
    free_at: Mapped[Moment]
