"""What a deployment was measured to take: seconds and dollars, phase by phase.

Duty: answers of the worker and the caller's own clock → one report.
Must not know: Modal, how the answers came.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One request: what the worker answered, and seconds until the caller had it."""

    result: dict[str, Any]
    seconds: float


def report(cold: Sample | None, warm: Sequence[Sample], idle_s: float) -> dict[str, Any]:
    """Medians of `warm`, and what the one that found nothing running took beside them.

    Dollars are what the platform bills for the container: GPU, processors, memory and region, by
    the second. Nothing is said in dollars where the worker knows no price.

    Args:
        cold: a request that had to wait for a container; None if none was measured.
        warm: at least one.
        idle_s: seconds that a container stays, and is billed, after its last request.
    """
    last = warm[-1].result
    price = (last.get("cost") or {}).get("usd_per_second")
    phases = {
        phase: statistics.median(s.result["timings"].get(phase, 0.0) for s in warm)
        for phase in last["timings"]
    }
    working = statistics.median(
        s.result.get("cost", {}).get("seconds", sum(s.result["timings"].values())) for s in warm
    )
    answer: dict[str, Any] = {
        "pictures": len(warm),
        "gpu": (last.get("cost") or {}).get("gpu"),
        "warm": {
            "seconds": round(statistics.median(s.seconds for s in warm), 3),
            "usd": _usd(working, price),
            "phases": {
                name: {"seconds": round(seconds, 4), "usd": _usd(seconds, price)}
                for name, seconds in phases.items()
            },
        },
    }
    if cold is not None:
        start = max(0.0, cold.seconds - answer["warm"]["seconds"])
        answer["cold"] = {
            "seconds": round(cold.seconds, 3),
            "start_seconds": round(start, 3),
            "idle_seconds": idle_s,
            # All that one lonely picture is billed: start, work, and the wait for another request.
            "usd": _usd(start + working + idle_s, price),
        }
    return answer


def _usd(seconds: float, price: float | None) -> float | None:
    return None if price is None else round(seconds * price, 8)
