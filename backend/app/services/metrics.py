"""Counters of contents, beside the HTTP ones."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

from app.models import Status


class Metrics:
    """What `/metrics` says of contents."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "content_ended", "Contents that ended in this process", ["status"], registry=registry
        )

    def on_end(self, announce: Callable[[uuid.UUID], None]) -> Callable[[uuid.UUID, Status], None]:
        """Counts a content's end, then tells `announce`."""

        def ended(content_id: uuid.UUID, status: Status) -> None:
            self._ended.labels(status.value).inc()
            announce(content_id)

        return ended
