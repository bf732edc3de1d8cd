"""What a deployment was measured to take: seconds and dollars, phase by phase.

Duty: answers of the worker and the caller's own clock → one report.
Must not know: Modal, how the answers came.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdxl_contract.result import StartReport


@dataclass(frozen=True)
class Sample:
    """One request: what the worker answered, and seconds until the caller had it."""

    result: dict[str, Any]
    seconds: float


def report(
    cold: Sample | None,
    warm: Sequence[Sample],
    idle_s: float,
    start: StartReport | None = None,
) -> dict[str, Any]:
    """Medians of `warm`, and what the one that found nothing running took beside them.

    Dollars are what the platform bills for the container: GPU, processors, memory and region, by
    the second. Nothing is said in dollars where the worker knows no price.

    Args:
        cold: a request that had to wait for a container; None if none was measured.
        warm: at least one.
        idle_s: seconds that a container stays, and is billed, after its last request.
        start: what the container of `cold` says of its start.
    """
    last = warm[-1].result
    price = (last.get("cost") or {}).get("usd_per_second")
    phases = {
        phase: statistics.median(s.result["timings"].get(phase, 0.0) for s in warm)
        for phase in last["timings"]
    }
    working = statistics.median(_working(sample) for sample in warm)
    answer: dict[str, Any] = {
        "pictures": len(warm),
        "gpu": (last.get("cost") or {}).get("gpu"),
        "warm": {
            "seconds": round(statistics.median(s.seconds for s in warm), 3),
            "usd": _usd(working, price),
            "phases": _priced(phases, price),
        },
    }
    if cold is not None:
        on_the_way = statistics.median(sample.seconds - _working(sample) for sample in warm)
        took = max(0.0, cold.seconds - _working(cold) - on_the_way)
        told = start.seconds if start is not None else {}
        # The rest: a machine found, the image there, Python or a snapshot's memory.
        platform = max(0.0, took - sum(told.values()))
        answer["cold"] = {
            "seconds": round(cold.seconds, 3),
            "way": start.way if start is not None else None,
            "fell_back": start.fell_back if start is not None else None,
            "start_seconds": round(took, 3),
            "start_usd": _usd(took, price),
            "phases": _priced({"platform": platform, **told}, price),
            "idle_seconds": idle_s,
            "idle_usd": _usd(idle_s, price),
            # All that one lonely picture is billed: start, work, and the wait for another request.
            "usd": _usd(took + _working(cold) + idle_s, price),
        }
    return answer


def _working(sample: Sample) -> float:
    """Seconds from the worker's acceptance of a request to its answer."""
    cost = sample.result.get("cost") or {}
    seconds: float = cost.get("seconds", sum(sample.result["timings"].values()))
    return seconds


def _priced(phases: Mapping[str, float], price: float | None) -> dict[str, Any]:
    return {
        name: {"seconds": round(seconds, 4), "usd": _usd(seconds, price)}
        for name, seconds in phases.items()
    }


def _usd(seconds: float, price: float | None) -> float | None:
    return None if price is None else round(seconds * price, 8)
