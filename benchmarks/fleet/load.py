"""What is asked of the fleet: when requests come, and for which LoRA.

Must not know: containers, prices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.timings import LORA_BYTES_PER_RANK, LORA_RANKS, ZIPF_S

# Share of a day's requests in each hour, mean 1: a night's low, an evening's high (assumed).
DAY = tuple(
    0.25 if hour < 6 else 0.7 if hour < 9 else 1.1 if hour < 18 else 1.75 if hour < 23 else 0.9
    for hour in range(24)
)


@dataclass(frozen=True)
class Load:
    """What is asked for.

    Args:
        per_minute: mean requests a minute.
        hours: how long.
        daily: follow the hours of a day instead of staying even.
        batch: mean requests that come at once with one LoRA (geometric).
        loras: how many different LoRAs; popularity falls as rank**-zipf_s.
        lora_bytes: size of every LoRA; None: by the shares of ranks.
        settle_hours: at the start, simulated but not counted: a fleet that begins empty is not
            what runs later.
    """

    per_minute: float
    hours: float
    daily: bool = False
    batch: float = 1.0
    loras: int = 1000
    zipf_s: float = ZIPF_S.value
    lora_bytes: int | None = None
    settle_hours: float = 0.0


def popularity(loras: int, s: float) -> NDArray[np.float64]:
    """Probability of each LoRA, the most popular first."""
    weights = np.arange(1, loras + 1, dtype=np.float64) ** -s
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def lora_sizes(load: Load, rng: np.random.Generator) -> NDArray[np.int64]:
    """Bytes of each LoRA."""
    if load.lora_bytes is not None:
        return np.full(load.loras, load.lora_bytes, dtype=np.int64)
    ranks, shares = zip(*LORA_RANKS, strict=True)
    drawn = rng.choice(ranks, size=load.loras, p=shares)
    sizes: NDArray[np.int64] = (drawn * LORA_BYTES_PER_RANK.value).astype(np.int64)
    return sizes


def arrivals(load: Load, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Times in seconds, and the LoRA asked for at each: a Poisson process, hour by hour."""
    times: list[NDArray[np.float64]] = []
    whole = int(np.ceil(load.hours))
    for hour in range(whole):
        share = min(1.0, load.hours - hour)
        rate = load.per_minute * 60 / load.batch * (DAY[hour % 24] if load.daily else 1.0)
        count = rng.poisson(rate * share)
        times.append(3600.0 * (hour + share * np.sort(rng.random(count))))
    events = np.concatenate(times) if times else np.zeros(0)
    cumulative = np.cumsum(popularity(load.loras, load.zipf_s))
    loras = np.minimum(np.searchsorted(cumulative, rng.random(len(events))), load.loras - 1)
    if load.batch > 1:
        repeat = rng.geometric(1 / load.batch, size=len(events))
        events, loras = np.repeat(events, repeat), np.repeat(loras, repeat)
    return events, loras
