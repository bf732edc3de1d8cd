"""SQL of the limits: calls per minute, open contents, the day's cost. Shared by all servers."""

from __future__ import annotations

import hashlib
from datetime import date, datetime
from typing import NamedTuple

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import DriverConnection, fetch_rows, fetch_value
from app.models import Content, RemovedCost, Status

_OPEN = (Status.QUEUED, Status.RUNNING)
_FEW = 20

# One statement, so that servers that share the database count together.
_TAKE = """
    INSERT INTO call_rate AS r (caller, free_at)
    VALUES (%(caller)s, clock_timestamp() + make_interval(secs => %(share)s))
    ON CONFLICT (caller) DO UPDATE
    SET free_at = greatest(r.free_at, clock_timestamp()) + make_interval(secs => %(share)s)
    WHERE r.free_at <= clock_timestamp() + make_interval(secs => %(tolerance)s)
    RETURNING free_at
"""
_WAIT = """
    SELECT extract(epoch FROM free_at - clock_timestamp())::float - %(tolerance)s
    FROM call_rate WHERE caller = %(caller)s
"""
_COUNT_OPEN = f"""
    SELECT count(*) FROM generation
    WHERE owner = %(owner)s AND finished_at IS NULL
    AND status IN ('{Status.QUEUED}', '{Status.RUNNING}')
"""
_USUAL_SECONDS = f"""
    SELECT extract(epoch FROM avg(took)) FROM (
        SELECT finished_at - started_at AS took FROM generation
        WHERE owner = %(owner)s AND status = '{Status.SUCCEEDED}'
        ORDER BY created_at DESC LIMIT %(few)s
    ) last
"""


def _lock_number(owner: str) -> int:
    digest = hashlib.sha256(f"accept:{owner}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


class Use(NamedTuple):
    """What an owner uses: contents that have not ended, USD of today's contents."""

    open_contents: int
    usd: float


class LimitRepository:
    """What callers and owners have used."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    @staticmethod
    async def take_call(connection: DriverConnection, caller: str, per_minute: int) -> float | None:
        """Count one call; None where it is within the limit, else the seconds to wait."""
        share = 60.0 / per_minute
        values = {"caller": caller, "share": share, "tolerance": 60.0 - share}
        if await fetch_rows(connection, _TAKE, values):
            return None
        return max(0.0, float(await fetch_value(connection, _WAIT, values)))

    @staticmethod
    async def hold_and_count(connection: DriverConnection, owner: str) -> int:
        """Keep other acceptances of this owner waiting, and count its contents that are open."""
        values = {"owner": owner, "number": _lock_number(owner)}
        # Two statements: the second has to see what was committed while the first one waited.
        await fetch_rows(connection, "SELECT pg_advisory_xact_lock(%(number)s)", values)
        return int(await fetch_value(connection, _COUNT_OPEN, values))

    @staticmethod
    async def usual_seconds_of(connection: DriverConnection, owner: str) -> float | None:
        """`usual_seconds`, past the session."""
        values = {"owner": owner, "few": _FEW}
        mean = await fetch_value(connection, _USUAL_SECONDS, values)
        return None if mean is None else float(mean)

    async def hold(self, owner: str) -> None:
        """Keep other acceptances of this owner waiting until the transaction's end."""
        await self._session.execute(select(func.pg_advisory_xact_lock(_lock_number(owner))))

    async def use(self, owner: str, since: datetime) -> Use:
        """What `owner` uses; of contents since a moment the actual cost, else the estimate."""
        open_contents = await self._session.scalar(
            select(func.count())
            .select_from(Content)
            .where(
                Content.owner == owner,
                Content.finished_at.is_(None),
                Content.status.in_(_OPEN),
            )
        )
        return Use(open_contents or 0, await self._usd(owner, since))

    async def _usd(self, owner: str, since: datetime) -> float:
        rows = await self._session.execute(
            select(
                func.sum(Content.cost_usd),
                func.sum(Content.estimated_usd).filter(Content.status.in_(_OPEN)),
            ).where(Content.owner == owner, Content.created_at >= since)
        )
        actual, expected = rows.one()
        removed = await self._session.scalar(
            select(func.sum(RemovedCost.usd)).where(
                RemovedCost.owner == owner, RemovedCost.day >= since.date()
            )
        )
        return float(actual or 0) + float(expected or 0) + float(removed or 0)

    async def keep_cost(self, owner: str, day: date, usd: float) -> None:
        """Remember what a content of `day` had cost that is deleted now."""
        added = insert(RemovedCost).values(owner=owner, day=day, usd=usd)
        await self._session.execute(
            added.on_conflict_do_update(
                index_elements=["owner", "day"], set_={"usd": RemovedCost.usd + added.excluded.usd}
            )
        )

    async def usual_seconds(self, owner: str) -> float | None:
        """Mean seconds of the owner's last contents, from their start to their end."""
        values = {"owner": owner, "few": _FEW}
        query = text(_USUAL_SECONDS.replace("%(owner)s", ":owner").replace("%(few)s", ":few"))
        mean = await self._session.scalar(query, values)
        return None if mean is None else float(mean)
