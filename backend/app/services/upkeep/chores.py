"""What is done now and then, as periodic jobs: one server of all that share the database does it.

Duty: name the chores, count their runs. Must not know: how a chore is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from app.core.db import Database
from app.core.settings import Settings
from app.models.base import utc_now
from app.repositories.upkeep.maintenance import MaintenanceRepository
from app.repositories.webhooks import remove_old_deliveries
from app.services.storage import Storage
from app.services.upkeep.metrics import Metrics
from app.services.upkeep.retention import remove_old
from app.services.upkeep.sweep import sweep

_DELIVERIES_KEPT = timedelta(days=30)  # of webhooks' messages that have ended
_FORGET_AT_ONCE = 1000

log = logging.getLogger(__name__)


class Chore(NamedTuple):
    """`cron` is in UTC; `run` may be repeated or run twice at once without harm."""

    name: str
    cron: str
    run: Callable[[], Awaitable[None]]


def chores(
    settings: Settings, database: Database, storage: Storage, metrics: Metrics
) -> Sequence[Chore]:
    """Every chore of the backend."""

    async def retain() -> None:
        removed = await remove_old(database, storage, settings.retention_days, settings.bin_days)
        metrics.retention_removed.inc(removed)
        if settings.generation_log_days is not None:
            async with database.session() as session:
                await MaintenanceRepository(session).remove_records(
                    utc_now() - timedelta(days=settings.generation_log_days)
                )

    async def sweep_storage() -> None:
        swept = await sweep(database, storage, settings.sweep_grace_seconds)
        metrics.sweep_removed.inc(swept.removed)
        metrics.sweep_missing.set(swept.missing_objects)

    async def forget_deliveries() -> None:
        before = utc_now() - _DELIVERIES_KEPT
        removed = _FORGET_AT_ONCE
        while removed == _FORGET_AT_ONCE:
            async with database.session() as session:
                removed = await remove_old_deliveries(session, before, _FORGET_AT_ONCE)

    return (
        Chore(
            "forget_deliveries",
            "22 4 * * *",
            _counted("forget_deliveries", forget_deliveries, metrics),
        ),
        Chore("remove_old_contents", "7 * * * *", _counted("remove_old_contents", retain, metrics)),
        Chore("sweep_storage", "37 3 * * *", _counted("sweep_storage", sweep_storage, metrics)),
    )


def _counted(
    name: str, run: Callable[[], Awaitable[None]], metrics: Metrics
) -> Callable[[], Awaitable[None]]:
    async def counted() -> None:
        started = time.perf_counter()
        try:
            await run()
        except Exception:
            metrics.chore_runs.labels(name, "failed").inc()
            log.exception("the periodic task %s failed; its next run tries again", name)
            return
        metrics.chore_runs.labels(name, "succeeded").inc()
        metrics.chore_seconds.labels(name).set(time.perf_counter() - started)
        metrics.chore_succeeded_at.labels(name).set_to_current_time()

    return counted
