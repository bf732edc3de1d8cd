"""Tables' columns as the driver needs them, where SQL goes past the session.

Named one by one, never `*`: a later version's table may have more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy.dialects.postgresql import JSONB, dialect

from app.models import Base, Content, Image

# Without what the database makes itself.
GENERATION = tuple(c.name for c in Content.__table__.columns if c.computed is None)
PIECE = tuple(Image.__table__.columns.keys())
_POSTGRESQL = dialect()  # type: ignore[no-untyped-call]


def listed(names: Iterable[str], before: str = "") -> str:
    """`before` and a name, for each of `names`, with commas between."""
    return ", ".join(f"{before}{name}" for name in names)


def parameters(names: Iterable[str]) -> str:
    """A place for the value of each of `names`."""
    return ", ".join(f"%({name})s" for name in names)


def typed(table: type[Base]) -> str:
    """Each column with its type, as `jsonb_to_recordset` wants them."""
    return ", ".join(
        f"{column.name} {column.type.compile(dialect=_POSTGRESQL)}"
        for column in table.__table__.columns
    )


def as_values(table: type[Base], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of `table`'s columns as the driver takes them; None is SQL's NULL."""
    columns = table.__table__.columns
    return {
        name: Jsonb(value) if value is not None and isinstance(columns[name].type, JSONB) else value
        for name, value in values.items()
    }
