"""What `GET /metrics` shows, in Prometheus' terms.

Must not know: how requests are run.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sdxl_contract.result import Timings
from sdxl_worker.graphs.calls import Count
from sdxl_worker.lora.cache import CacheStats

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


Counts = Mapping[Count, int]


class Metrics:
    """One worker's counters, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "sdxl_worker_requests", "Requests by outcome", ["outcome"], registry=self._registry
        )
        self.seconds = Histogram(
            "sdxl_worker_request_seconds",
            "Seconds from acceptance to answer",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.phase_seconds = Histogram(
            "sdxl_worker_phase_seconds",
            "Seconds per phase of requests that succeeded",
            ["phase"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.lora_cache = Counter(
            "sdxl_worker_lora_lookups",
            "LoRAs by where they were found: memory, disk, or miss (downloaded)",
            ["found"],
            registry=self._registry,
        )
        self.cache_bytes = Gauge(
            "sdxl_worker_lora_cache_bytes", "Parsed LoRAs held in memory", registry=self._registry
        )
        self.disk_bytes = Gauge(
            "sdxl_worker_lora_disk_bytes", "LoRA files held on disk", registry=self._registry
        )
        self.disk_damaged = Gauge(
            "sdxl_worker_lora_disk_damaged",
            "Files on disk removed since start because their hash was wrong, or not kept",
            registry=self._registry,
        )
        self.queue_length = Gauge(
            "sdxl_worker_queue_length", "Requests waiting for the lane", registry=self._registry
        )
        self.calls = Counter(
            "sdxl_worker_model_calls",
            "Calls of the model's parts: replayed, captured or eager, and why eager",
            ["part", "how", "why"],
            registry=self._registry,
        )
        self.graph_bytes = Gauge(
            "sdxl_worker_graph_bytes", "Memory of recorded calls", registry=self._registry
        )
        self.swaps = Counter(
            "sdxl_worker_lora_swaps",
            "Applications of a LoRA set by kind",
            ["kind"],
            registry=self._registry,
        )
        self.restores = Counter(
            "sdxl_worker_restores_verified",
            "Restores after which every written weight equalled its pristine copy",
            registry=self._registry,
        )
        self.restored_bytes = Counter(
            "sdxl_worker_restored_bytes", "Bytes put back", registry=self._registry
        )

    def request_done(self, outcome: str, seconds: float) -> None:
        """Count one finished request: `ok` or its error code."""
        self.requests.labels(outcome).inc()
        self.seconds.observe(seconds)

    def request_refused(self, outcome: str) -> None:
        """Count one request that was not accepted, by its error code: its seconds are none."""
        self.requests.labels(outcome).inc()

    def phases(self, timings: Timings) -> None:
        """Count one successful request's seconds per phase."""
        for phase, seconds in timings.model_dump().items():
            self.phase_seconds.labels(phase).observe(seconds)

    def model_calls(self, counts: Counts) -> None:
        """Count how one request's calls of the model's parts were made."""
        for (part, how, why), count in counts.items():
            self.calls.labels(part, how.value, why.value if why else "").inc(count)

    def holdings(
        self,
        *,
        queue_length: int,
        cache: CacheStats | None,
        disk: CacheStats | None,
        graph_bytes: int,
    ) -> None:
        """Set what is held at this moment; None where there is no such cache (yet)."""
        self.queue_length.set(queue_length)
        self.graph_bytes.set(graph_bytes)
        if cache is not None:
            self.cache_bytes.set(cache.nbytes)
        if disk is not None:
            self.disk_bytes.set(disk.nbytes)
            self.disk_damaged.set(disk.rejected)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
