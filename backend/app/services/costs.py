"""What pictures cost: GPU seconds times a dated price.

Must not know: who pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from app.core.db import Database
from app.repositories.costs import CostRepository
from app.schemas.costs import CostGroup, CostSummary
from sdxl_contract.prices import PRICES_AS_OF, usd


class Cost(NamedTuple):
    """`usd` is None where `gpu` has no price: a CPU costs nothing that we know of."""

    usd: float | None
    gpu: str | None
    seconds: float


def price(timings: Mapping[str, float], gpu: str | None) -> Cost:
    """The cost of one content from its seconds by phase; waiting in the worker's line is free."""
    seconds = sum(value for phase, value in timings.items() if phase != "queue")
    return Cost(None if gpu is None else usd(gpu, seconds), gpu, round(seconds, 6))


async def summarise(database: Database, owner: str, days: int) -> CostSummary:
    """What `owner`'s contents of the last `days` days cost, today included."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=days - 1)
    async with database.session() as session:
        repository = CostRepository(session, owner, since)
        total = await repository.total()
        by_day = await repository.by_day()
        by_avatar = await repository.by_avatar()
        by_lora = await repository.by_lora()
    return CostSummary(
        days=days,
        since=since,
        prices_as_of=PRICES_AS_OF,
        total=CostGroup.model_validate(total),
        by_day=[CostGroup.model_validate(row) for row in by_day],
        by_avatar=[CostGroup.model_validate(row) for row in by_avatar],
        by_lora=[CostGroup.model_validate(row) for row in by_lora],
    )
