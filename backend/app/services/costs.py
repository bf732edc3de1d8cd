"""What pictures cost: GPU seconds times a dated price.

Must not know: who pays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from app.core.db import Database
from app.repositories.costs import CostRepository
from app.schemas.costs import CostGroup, CostSummary
from sdxl_contract.prices import PRICES_AS_OF, usd

# Less is the network's way there and back, not a start.
_COLD_START_SECONDS = 1.0
_LORA_PHASES = frozenset({"download", "parse", "apply", "restore"})


class Cost(NamedTuple):
    """`usd` is None where `gpu` has no price: a CPU costs nothing that we know of.

    `parts` are the seconds of `cold_start`, `lora` and `generation`; `seconds` is their sum.
    """

    usd: float | None
    gpu: str | None
    seconds: float
    parts: dict[str, float]


def price(timings: Mapping[str, float], gpu: str | None, cold_start: float = 0.0) -> Cost:
    """The cost of one content from its seconds by phase; waiting in the worker's line is free."""
    working = {phase: value for phase, value in timings.items() if phase != "queue"}
    lora = sum(value for phase, value in working.items() if phase in _LORA_PHASES)
    parts = {
        "cold_start": round(cold_start, 6),
        "lora": round(lora, 6),
        "generation": round(sum(working.values()) - lora, 6),
    }
    seconds = sum(parts.values())
    return Cost(None if gpu is None else usd(gpu, seconds), gpu, round(seconds, 6), parts)


class CallClock:
    """Times one call of a worker from outside: how long until it gave a first sign of life.

    A container that has to start takes the request only once its model is loaded, so that wait,
    which is paid for, shows in nothing that the worker itself can measure.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sent = now()
        self._heard: float | None = None

    def sent(self) -> None:
        """A request goes out now; an earlier one, if any, has failed."""
        self._sent, self._heard = self._now(), None

    def heard(self) -> None:
        """The worker said something."""
        if self._heard is None:
            self._heard = self._now()

    def cold_start(self, timings: Mapping[str, float]) -> float:
        """Seconds that the worker took to start, told after its answer; 0 where it was warm."""
        if self._heard is not None:
            waited = self._heard - self._sent
        else:  # it told no progress: what its own seconds don't explain
            waited = self._now() - self._sent - sum(timings.values())
        return waited if waited >= _COLD_START_SECONDS else 0.0


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
