"""The declarative base, column types shared by all tables, and constraint names."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from sqlalchemy import DateTime, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import DeclarativeBase, mapped_column

# Data made before the first API key, and by it afterwards.
LOCAL_OWNER = "local"

UuidPk = Annotated[uuid.UUID, mapped_column(UUID(as_uuid=True), primary_key=True)]
Created = Annotated[
    datetime, mapped_column(DateTime(timezone=True), server_default=func.now(), nullable=False)
]
Moment = Annotated[datetime, mapped_column(DateTime(timezone=True))]
Json = Annotated[dict[str, Any], mapped_column(JSONB)]
JsonList = Annotated[list[Any], mapped_column(JSONB)]
LongText = Annotated[str, mapped_column(Text)]


class Base(DeclarativeBase):
    """Every table's parent; constraint names are derived, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    @classmethod
    def transient(cls, **values: Any) -> Self:
        """A row that never meets a session, filled as the ORM itself fills what it loads.

        The constructor asks of each column who wants to hear of its new value: for the forty of a
        content, a twentieth of the CPU of a picture's way.

        Raises:
            TypeError: it has no such column.
        """
        # To ask for them also sets them up, which nothing else may have done yet.
        if unknown := values.keys() - cls.__mapper__.attrs.keys():
            raise TypeError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
        row: Self = cls.__mapper__.class_manager.new_instance()
        row.__dict__.update(values)
        return row


def utc_now() -> datetime:
    """Now, with its zone."""
    return datetime.now(UTC)
