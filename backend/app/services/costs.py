"""What pictures cost: GPU seconds times a dated price.

Must not know: who pays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from app.core.db import Database
from app.models import Content
from app.repositories.costs import CostRepository
from app.schemas.costs import CostGroup, CostSummary
from sdxl_contract.prices import PRICES_AS_OF, usd

# Less is the network's way there and back, not a start.
_COLD_START_SECONDS = 1.0
# A kept result is answered at once; the worker's clock and ours differ by less than this.
_REPEAT_SECONDS = 0.5
QUEUE, UNTOLD = "queue", "untold"
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
    working = {phase: value for phase, value in timings.items() if phase != QUEUE}
    lora = sum(value for phase, value in working.items() if phase in _LORA_PHASES)
    parts = {
        "cold_start": round(cold_start, 6),
        "lora": round(lora, 6),
        "generation": round(sum(working.values()) - lora, 6),
    }
    seconds = sum(parts.values())
    return Cost(None if gpu is None else usd(gpu, seconds), gpu, round(seconds, 6), parts)


def added(cost: Cost, earlier: Cost) -> Cost:
    """What an attempt cost and what earlier ones at the same content had cost."""
    parts = {
        name: round(cost.parts.get(name, 0.0) + earlier.parts.get(name, 0.0), 6)
        for name in {*cost.parts, *earlier.parts}
    }
    known = [part.usd for part in (cost, earlier) if part.usd is not None]
    return Cost(
        sum(known) if known else None,
        cost.gpu or earlier.gpu,
        round(cost.seconds + earlier.seconds, 6),
        parts,
    )


def cost_of(content: Content) -> Cost:
    """What a content has cost up to now."""
    return Cost(
        content.cost_usd, content.cost_gpu, content.cost_seconds or 0.0, content.cost_parts or {}
    )


def cost_columns(cost: Cost) -> dict[str, Any]:
    """`cost` as a content's row holds it."""
    return {
        "cost_usd": cost.usd,
        "cost_gpu": cost.gpu,
        "cost_seconds": cost.seconds,
        "cost_parts": cost.parts,
    }


class CallClock:
    """Times the calls of one attempt from outside: until a first sign of life, and each phase told.

    A container that has to start takes the request only once its model is loaded, so that wait,
    which is paid for, shows in nothing that the worker itself can measure. A call that fails or is
    stopped has no answer with the worker's own seconds: what was heard meanwhile stands for them.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._clock = now
        self._end: float | None = None
        self._was_sent = False
        self._sent = now()
        self._heard: float | None = None
        self._phase: str | None = None
        self._since = self._sent
        self._phases: dict[str, float] = {}  # of this call
        self._spent: dict[str, float] = {}  # of earlier calls, which have failed

    def sent(self) -> None:
        """A request goes out now; an earlier one, if any, has failed."""
        for phase, seconds in self._call().items():
            self._spent[phase] = self._spent.get(phase, 0.0) + seconds
        self._sent, self._heard, self._phase, self._phases = self._clock(), None, None, {}
        self._end, self._was_sent = None, True

    def heard(self, phase: str | None = None) -> None:
        """The worker said something: that it is in a phase, or nothing of that."""
        now = self._now()
        if self._heard is None:
            self._heard = now
        if phase is None:
            return
        if self._phase is not None:
            self._phases[self._phase] = self._phases.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def ended(self) -> None:
        """Nothing is drawn any more: time that goes by from now on is nobody's."""
        if self._end is None:
            self._end = self._clock()

    def count_unheard(self) -> None:
        """Count a call that told nothing of itself as work from its beginning to its end."""
        if self._was_sent and self._heard is None:
            self._phases[UNTOLD] = self._now() - self._sent

    @property
    def seconds(self) -> float:
        """How long the last call has taken, or took."""
        return self._now() - self._sent

    def _now(self) -> float:
        return self._clock() if self._end is None else self._end

    def _call(self) -> dict[str, float]:
        """Seconds by phase of the call that goes on, up to now."""
        phases = dict(self._phases)
        if self._phase is not None:
            phases[self._phase] = phases.get(self._phase, 0.0) + self._now() - self._since
        return phases

    @property
    def began(self) -> bool:
        """Whether the worker began to work, in any call: its waiting line is none."""
        return any(phase != QUEUE for phase in {*self._spent, *self._call()})

    def used(self, answer: Mapping[str, float] | None = None) -> dict[str, float]:
        """Seconds by phase of every call; `answer` are the worker's own of the last one."""
        last = self._call() if answer is None else dict(answer)
        if answer is not None and self.is_repeat(answer):
            return last
        phases = {*last, *self._spent}
        return {phase: last.get(phase, 0.0) + self._spent.get(phase, 0.0) for phase in phases}

    def is_repeat(self, answer: Mapping[str, float]) -> bool:
        """Whether the worker's own seconds are of an earlier call, whose result it had kept."""
        working = sum(seconds for phase, seconds in answer.items() if phase != QUEUE)
        return working > self._now() - self._sent + _REPEAT_SECONDS

    def cold_start(self, timings: Mapping[str, float] | None = None) -> float:
        """Seconds that the worker took to start, told after its answer; 0 where it was warm.

        Without an answer (`timings`) only what was heard counts.
        """
        if self._heard is not None:
            waited = self._heard - self._sent
        elif timings is not None:  # it told no progress: what its own seconds don't explain
            waited = self._now() - self._sent - sum(timings.values())
        else:
            waited = 0.0
        return waited if waited >= _COLD_START_SECONDS else 0.0


async def summarise(database: Database, owner: str, days: int) -> CostSummary:
    """What `owner`'s contents of the last `days` days cost, today included."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=days - 1)
    async with database.snapshot() as session:
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
