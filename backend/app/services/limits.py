"""What a key may use: calls per minute, contents at the same time, USD a day.

A refusal says when it will be free again. Contents and USD are counted over the owner: keys of
one owner spend the same money.
Must not know: HTTP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database, DriverConnection
from app.core.errors import BudgetExhausted, RateLimited
from app.core.settings import Settings
from app.models import ApiKey
from app.models.base import utc_now
from app.repositories.access.limits import LimitRepository

_USUAL_SECONDS = 15.0


@dataclass(frozen=True)
class Allowance:
    """What one caller may use; None is without a limit."""

    requests_per_minute: int | None = None
    max_open_contents: int | None = None
    daily_budget_usd: float | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether new contents are not counted."""
        return self.max_open_contents is None and self.daily_budget_usd is None

    @classmethod
    def of(cls, settings: Settings, key: ApiKey | None) -> Allowance:
        """The key's own limits, else those of the settings."""

        def choose(own: float | None, usual: float | None) -> float | None:
            return usual if own is None else own

        if key is None:
            return cls(
                settings.requests_per_minute,
                settings.max_open_contents or None,
                settings.daily_budget_usd,
            )
        calls = choose(key.requests_per_minute, settings.requests_per_minute)
        contents = choose(key.max_open_contents, settings.max_open_contents or None)
        return cls(
            None if calls is None else int(calls),
            None if contents is None else int(contents),
            choose(key.daily_budget_usd, settings.daily_budget_usd),
        )


UNLIMITED = Allowance()


async def take_call(database: Database, caller: str, allowance: Allowance) -> None:
    """Count a call.

    Raises:
        RateLimited: it is one too many.
    """
    if allowance.requests_per_minute is None:
        return
    async with database.direct() as connection:
        wait = await LimitRepository.take_call(connection, caller, allowance.requests_per_minute)
    if wait is not None:
        raise _rate_limited(
            f"This key may make {allowance.requests_per_minute} calls a minute.", wait
        )


async def admit(
    session: AsyncSession, owner: str, allowance: Allowance, contents: int, usd: float | None
) -> None:
    """Let `contents` new ones of together about `usd` in; `session` then adds them.

    Raises:
        RateLimited: too many wait or run already.
        BudgetExhausted: the day's money does not reach.
    """
    if allowance.is_unlimited:
        return
    repository = LimitRepository(session)
    # Two acceptances at once would each see room for itself.
    await repository.hold(owner)
    today = day_start(utc_now())
    used = await repository.use(owner, today)
    limit = allowance.max_open_contents
    if limit is not None and used.open_contents + contents > limit:
        wait = await repository.usual_seconds(owner) or _USUAL_SECONDS
        raise _too_many(limit, used.open_contents, contents, wait)
    budget = allowance.daily_budget_usd
    # Without an estimate (nothing was ever priced) only what is spent counts.
    if budget is not None and (used.usd >= budget or used.usd + (usd or 0.0) > budget):
        free_at = today + timedelta(days=1)
        raise BudgetExhausted(
            f"The daily budget is {budget:g} USD, and {used.usd:.4f} USD of it are spent or "
            f"reserved; the next day begins at {free_at:%Y-%m-%dT%H:%MZ}.",
            free_at=free_at,
            retry_after=(free_at - utc_now()).total_seconds(),
        )


async def admit_directly(
    connection: DriverConnection, owner: str, allowance: Allowance, contents: int
) -> None:
    """`admit` where no money is counted, past the session: it is on every picture's way.

    Raises:
        RateLimited: too many wait or run already.
    """
    limit = allowance.max_open_contents
    if limit is None:
        return
    used = await LimitRepository.hold_and_count(connection, owner)
    if used + contents > limit:
        wait = await LimitRepository.usual_seconds_of(connection, owner) or _USUAL_SECONDS
        raise _too_many(limit, used, contents, wait)


def _too_many(limit: int, used: int, contents: int, wait: float) -> RateLimited:
    return _rate_limited(
        f"At most {limit} contents may wait or run at the same time, and "
        f"{used} do: with {contents} more it would be too many.",
        wait,
    )


def day_start(moment: datetime) -> datetime:
    """Midnight (UTC) of a moment's day."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _rate_limited(what: str, wait: float) -> RateLimited:
    seconds = max(1, math.ceil(wait))
    free_at = utc_now() + timedelta(seconds=seconds)
    return RateLimited(
        f"{what} It will probably be free again in {seconds} s.",
        free_at=free_at,
        retry_after=seconds,
    )
