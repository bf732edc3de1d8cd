"""What an attempt is charged, whatever its end: drawn, failed, stopped, given back, deleted.

Must not know: how an attempt goes, and what its end is.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable

from app.core.db import DATABASE_LOST, Database
from app.models import Content
from app.repositories.access.limits import LimitRepository
from app.repositories.attempts import AttemptRepository, Holds
from app.services.costs import CallClock, Cost, added, cost_of, price
from app.services.limits import day_start
from app.services.modal_sdxl_lora_client import InferenceOutcome
from sdxl_contract.errors import ErrorCode

# Failures of who had begun to work, told or not.
WORKED = frozenset(
    {
        ErrorCode.CANCELLED,
        ErrorCode.CONTENT_REFUSED,
        ErrorCode.CUDA_OOM,
        ErrorCode.GENERATION_FAILED,
        ErrorCode.TIMEOUT,
    }
)
# The price's name of what a provider draws on, where its answer does not say; None: not known.
Gpu = Callable[[str | None], str | None]


def cost_of_picture(
    content: Content, outcome: InferenceOutcome, clock: CallClock, gpu: Gpu
) -> Cost:
    """What a picture cost, with what calls and attempts before had used."""
    result = outcome.result
    answer = result.timings.model_dump()
    name = result.cost.gpu if result.cost else gpu(outcome.provider)
    cost = price(clock.used(answer), name, clock.cold_start(answer))
    # A result that the worker had kept is what an earlier attempt was charged for.
    return cost if clock.is_repeat(answer) else added(cost, cost_of(content))


def cost_of_nothing(content: Content, clock: CallClock, gpu: Gpu) -> Cost | None:
    """What an attempt used that gave no picture, with those before; None where it used nothing."""
    if not clock.began:
        return None
    cost = price(clock.used(), gpu(None), clock.cold_start())
    return added(cost, cost_of(content))


async def charge_if_deleted(database: Database, content: Content, cost: Cost | None) -> None:
    """Count what an attempt used whose content was deleted meanwhile."""
    if cost is None or not cost.usd:
        return
    with contextlib.suppress(*DATABASE_LOST):
        if await _holds(database, content.id, content.attempt) is not Holds.GONE:
            return
        usd = cost.usd - (content.cost_usd or 0.0)  # earlier attempts were counted at its deletion
        async with database.session() as session:
            day = day_start(content.created_at).date()
            await LimitRepository(session).keep_cost(content.owner, day, max(0.0, usd))


async def _holds(database: Database, content_id: uuid.UUID, attempt: int) -> Holds:
    async with database.direct() as connection:
        return await AttemptRepository(connection).holds(content_id, attempt)
