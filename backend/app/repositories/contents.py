"""SQL that is on every picture's way, spoken to the driver itself.

Rows become `Generation`s that belong to no session.
"""

from __future__ import annotations

import uuid
from typing import Any

from app.core.db import DriverConnection, fetch_rows, fetch_value
from app.models import ContentPiece, Generation
from app.repositories.columns import GENERATION, PIECE, as_values, listed, parameters

_ADD = f"INSERT INTO generation ({listed(GENERATION)}) VALUES ({parameters(GENERATION)})"
_PIECE_PREFIX = "piece_"
_PIECES = ", ".join(f"p.{name} AS {_PIECE_PREFIX}{name}" for name in PIECE)
_GET = f"""
    SELECT {listed(GENERATION, "g.")}, {_PIECES}
    FROM generation g LEFT JOIN content_piece p ON p.generation_id = g.id
    WHERE g.id = %(content_id)s AND g.owner = %(owner)s
    ORDER BY p.position
"""
_USUAL_USD = """
    SELECT sum(usd) / nullif(sum(images), 0) FROM (
        SELECT cost_usd AS usd, coalesce((parameters ->> 'num_images')::int, 1) AS images
        FROM generation WHERE owner = %(owner)s AND cost_usd IS NOT NULL
        ORDER BY created_at DESC LIMIT 50
    ) AS recent
"""


class ContentRepository:
    """Contents of one owner."""

    def __init__(self, connection: DriverConnection, owner: str) -> None:
        self._connection = connection
        self._owner = owner

    async def add(self, generation: Generation) -> None:
        """Insert; raises psycopg's IntegrityError where its idempotency key was used meanwhile."""
        values = {name: getattr(generation, name) for name in GENERATION}
        await self._connection.execute(_ADD.encode(), as_values(Generation, values))

    async def get(self, content_id: uuid.UUID) -> Generation | None:
        """One, with its pictures."""
        rows = await fetch_rows(
            self._connection, _GET, {"content_id": content_id, "owner": self._owner}
        )
        if not rows:
            return None
        return as_generation(
            rows[0],
            [
                ContentPiece(**{name: row[_PIECE_PREFIX + name] for name in PIECE})
                for row in rows
                if row[f"{_PIECE_PREFIX}id"] is not None
            ],
        )

    async def usual_usd(self) -> float | None:
        """Mean USD per picture of the owner's last priced contents; None where none was priced."""
        mean = await fetch_value(self._connection, _USUAL_USD, {"owner": self._owner})
        return None if mean is None else float(mean)


def as_generation(row: dict[str, Any], pieces: list[ContentPiece]) -> Generation:
    """A row with all of its table's columns."""
    return Generation(**{name: row[name] for name in GENERATION}, pieces=pieces)
