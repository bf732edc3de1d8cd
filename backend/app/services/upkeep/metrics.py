"""What `/metrics` says beside the HTTP figures: contents, queue, cost, limits, periodic tasks.

Counters are this process's own. Gauges of queue and cost come from the database, so that every
server says the same: take their maximum, not their sum.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.core.db import DATABASE_LOST, Database
from app.models import Status
from app.models.base import utc_now
from app.repositories.upkeep.maintenance import MaintenanceRepository
from app.services.limits import day_start

log = logging.getLogger(__name__)


class Metrics:
    """Every figure of the backend's own."""

    def __init__(self, registry: CollectorRegistry, daily_alert_usd: float | None = None) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._ended = counter("content_ended", "Contents that ended in this process", "status")
        self.refused = counter("limit_refusals", "Calls refused by a limit", "error_code")
        self._open = gauge("contents_open", "Contents that have not ended", "status")
        self._oldest = gauge("content_oldest_queued_seconds", "Longest wait in the queue")
        self._today = gauge("cost_today_usd", "USD of contents that ended today (UTC)")
        self._alert = gauge("cost_alert", "1 where cost_today_usd has reached DAILY_ALERT_USD")
        self._alert.set(0)
        self._alert_usd = daily_alert_usd
        if daily_alert_usd is not None:
            gauge("cost_alert_threshold_usd", "DAILY_ALERT_USD").set(daily_alert_usd)
        self.chore_runs = counter("chore_runs", "Runs of periodic tasks", "chore", "outcome")
        self.chore_seconds = gauge("chore_seconds", "Seconds of the last good run", "chore")
        self.chore_succeeded_at = gauge(
            "chore_succeeded_timestamp_seconds", "When the last good run ended", "chore"
        )
        self.retention_removed = counter("retention_removed", "Contents removed for their age")
        self.sweep_removed = counter("sweep_removed", "Objects without a row that were removed")
        self.sweep_missing = gauge("sweep_missing_objects", "Rows whose object is gone")

    def on_end(self, announce: Callable[[uuid.UUID], None]) -> Callable[[uuid.UUID, Status], None]:
        """Counts a content's end, then tells `announce`."""

        def ended(content_id: uuid.UUID, status: Status) -> None:
            self._ended.labels(status.value).inc()
            announce(content_id)

        return ended

    async def look(self, database: Database) -> None:
        """Read the gauges of queue and cost from the database."""
        async with database.snapshot() as session:
            figures = await MaintenanceRepository(session).figures(day_start(utc_now()))
        self._open.labels(Status.QUEUED.value).set(figures.queued)
        self._open.labels(Status.RUNNING.value).set(figures.running)
        self._oldest.set(figures.oldest_queued_seconds)
        self._today.set(figures.usd_today)
        if self._alert_usd is not None:
            self._alert.set(figures.usd_today >= self._alert_usd)

    async def watch(self, database: Database, every_s: float) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look(database)
            except DATABASE_LOST as error:
                log.warning("the metrics cannot be read: %s", type(error).__name__)
            except Exception:
                log.exception("reading the metrics failed")
            await asyncio.sleep(every_s)
