"""What happened in a simulated fleet, in the numbers that tables and plots show.

Must not know: how it was simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Outcome:
    """What happened after the settling time: to the requests of the load's hours until the last of
    them was answered, and to containers, paid and used, within those hours."""

    latencies: NDArray[np.float64]  # seconds from arrival to answer, in order of arrival
    origins: dict[str, int]  # where each request's LoRA came from
    container_seconds: float
    usd: float
    peak_containers: int
    starts: int
    horizon_s: float
    in_system_area: float  # integral over time of the requests in the system
    lane_busy_s: float
    waits: NDArray[np.float64] = field(repr=False)  # seconds from arrival to the lane
    own_images: int = 0  # of the requests answered, those that own GPUs drew
    own_seconds: float = 0.0  # of own GPUs, which are not in `container_seconds`

    @property
    def images(self) -> int:
        """Requests answered."""
        return len(self.latencies)

    @property
    def usd_per_image(self) -> float:
        """All container seconds shared among the images."""
        return self.usd / self.images if self.images else 0.0

    def quantile(self, q: float) -> float:
        """Latency that a share `q` of requests stayed below, in seconds."""
        return float(np.quantile(self.latencies, q)) if self.images else 0.0

    @property
    def memory_hit_rate(self) -> float:
        """Share of requests whose LoRA was in the container's memory."""
        total = sum(self.origins.values())
        return self.origins["memory"] / total if total else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the seconds of all containers in which the model worked."""
        seconds = self.container_seconds + self.own_seconds
        return self.lane_busy_s / seconds if seconds else 0.0

    @property
    def usd_per_hour(self) -> float:
        """All container seconds, by the hour."""
        return self.usd / self.horizon_s * 3600 if self.horizon_s else 0.0

    def row(self) -> dict[str, float]:
        """The numbers that tables show."""
        return {
            "images": self.images,
            "p50_s": round(self.quantile(0.5), 3),
            "p95_s": round(self.quantile(0.95), 3),
            "p99_s": round(self.quantile(0.99), 3),
            "usd_per_image": round(self.usd_per_image, 6),
            "memory_hit_rate": round(self.memory_hit_rate, 4),
            "utilisation": round(self.utilisation, 4),
            "peak_containers": self.peak_containers,
            "starts": self.starts,
            "usd_per_hour": round(self.usd_per_hour, 4),
            "own_share": round(self.own_images / self.images, 4) if self.images else 0.0,
        }
