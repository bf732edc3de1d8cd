"""SQL of the cost summary."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_SUMS = """
    count(*) FILTER (WHERE g.status = 'succeeded') AS contents,
    coalesce(sum((g.parameters->>'num_images')::int) FILTER (WHERE g.status = 'succeeded'), 0)
        AS images,
    coalesce(sum(g.cost_seconds), 0)::float AS seconds,
    coalesce(sum(g.cost_usd), 0)::float AS actual_usd,
    coalesce(sum(coalesce(g.cost_usd, 0) + CASE WHEN g.status IN ('queued', 'running')
                      THEN coalesce(g.estimated_usd, 0) ELSE 0 END), 0)::float AS estimated_usd,
    coalesce(sum(g.cost_seconds) FILTER (WHERE g.cost_usd IS NULL), 0)::float AS unpriced_seconds,
""" + ",\n".join(
    f"coalesce(sum((g.cost_parts->>'{part}')::float), 0)::float AS {part}_seconds, "
    f"coalesce(sum(g.cost_usd * (g.cost_parts->>'{part}')::float / nullif(g.cost_seconds, 0)), 0)"
    f"::float AS {part}_usd"
    for part in ("cold_start", "lora", "generation")
)
_MINE = "g.owner = :owner AND g.created_at >= :since"


class CostRepository:
    """Sums over one owner's contents since a moment."""

    def __init__(self, session: AsyncSession, owner: str, since: datetime) -> None:
        self._session = session
        self._parameters = {"owner": owner, "since": since}

    async def total(self) -> dict[str, Any]:
        """All together."""
        rows = await self._rows(f"SELECT {_SUMS} FROM generation g WHERE {_MINE}")
        return rows[0]

    async def by_day(self) -> Sequence[dict[str, Any]]:
        """One row per day (UTC) with contents, oldest first."""
        return await self._rows(
            "SELECT to_char(g.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day, "
            f"{_SUMS} FROM generation g WHERE {_MINE} GROUP BY 1 ORDER BY 1"
        )

    async def by_avatar(self) -> Sequence[dict[str, Any]]:
        """One row per avatar, dearest first; contents without one are a row of their own."""
        return await self._rows(
            f"SELECT g.avatar_id AS id, max(a.name) AS name, {_SUMS} FROM generation g "
            f"LEFT JOIN avatar a ON a.id = g.avatar_id WHERE {_MINE} "
            "GROUP BY g.avatar_id ORDER BY seconds DESC"
        )

    async def by_lora(self) -> Sequence[dict[str, Any]]:
        """One row per LoRA; a content with several counts fully in each."""
        return await self._rows(
            "SELECT (l.value->>'lora_model_id')::uuid AS id, max(l.value->>'name') AS name, "
            f"{_SUMS} FROM generation g CROSS JOIN LATERAL jsonb_array_elements(g.loras) l "
            f"WHERE {_MINE} GROUP BY 1 ORDER BY seconds DESC"
        )

    async def _rows(self, sql: str) -> list[dict[str, Any]]:
        result = await self._session.execute(text(sql), self._parameters)
        return [dict(row) for row in result.mappings()]
