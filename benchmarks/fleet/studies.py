"""The questions put to the simulated fleet, each a list of points to simulate.

Must not know: how answers are drawn or written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.fleet.load import Load
from benchmarks.fleet.model import Fleet, Routing, simulate
from benchmarks.fleet.outcome import Outcome
from benchmarks.fleet.shipped import shipped_fleet
from deploy.timings import GIB, GPUS, MB, START_OF, ColdStart, timings

GPU = "L40S"
RATES = (1, 10, 100, 1000, 10_000)
WINDOWS_S = (2, 15, 60, 120, 300, 900)
MIN_CONTAINERS = (0, 1, 2, 3, 4, 6)
CACHES_GIB = (0.25, 1, 4, 16, 64)
DOWNLOADS_MB_S = (43, 100, 200)
OWN = (0, 1, 2, 3, 4, 6, 8, 10)
LORAS = (100, 1000, 10_000, 100_000)
_COUNTED = 4000  # requests of a point without the hours of a day: p95 within some percent


@dataclass(frozen=True)
class Point:
    """One simulation: what is asked, of which fleet, and the words that a table shows for it."""

    labels: tuple[tuple[str, str | float], ...]
    load: Load
    fleet: Fleet


@dataclass(frozen=True)
class Answer:
    """A point's words, and the numbers that came of it."""

    labels: Mapping[str, str | float]
    row: Mapping[str, float]


def steady(per_minute: float, loras: int, settle_s: float, counted: float = _COUNTED) -> Load:
    """An even load, long enough to settle and then to count `counted` requests."""
    settle = settle_s / 3600
    return Load(per_minute, settle + counted / per_minute / 60, loras=loras, settle_hours=settle)


def day(per_minute: float, loras: int, scale: float) -> Load:
    """A day's load by its hours, after three hours of settling."""
    return Load(per_minute, 3 + 24 * scale, daily=True, loras=loras, settle_hours=3)


def _downloads(fleet: Fleet, rate_mb_s: float) -> Fleet:
    """`fleet` with LoRAs that come at that rate; the shipped one's where it is the same."""
    rate = fleet.timings.download_rate
    if round(rate / MB) != rate_mb_s:
        rate = rate_mb_s * MB
    return replace(fleet, timings=replace(fleet.timings, download_rate=rate))


def shipped(scale: float) -> list[Point]:
    """What the deployment does when nobody sets anything; the first row is it. Then what the
    routing, and the rate of a LoRA's download, change."""
    fleet = shipped_fleet()
    return [
        Point(
            (("requests/min", per_minute), ("routing", routing.value), ("download, MB/s", rate)),
            day(per_minute, 10_000, scale),
            _downloads(replace(fleet, routing=routing), rate),
        )
        for per_minute in (10, 1, 20)
        for routing in (fleet.routing, Routing.AFFINITY)
        for rate in DOWNLOADS_MB_S
    ]


def starts(scale: float) -> list[Point]:
    """What the way to start, the idle window and a chosen region change where requests are rare."""
    fleet = shipped_fleet()
    return [
        Point(
            (("weights from", start.value), ("region", region or "any"), ("window, s", window)),
            day(1, 10_000, scale),
            replace(
                fleet,
                timings=timings(fleet.timings.gpu, start, region=region),
                scaledown_window_s=window,
            ),
        )
        for start in START_OF.values()
        for region, windows in (("", (120, 60)), ("us", (120,)), ("us-east", (120,)))
        for window in windows
    ]


def own(scale: float) -> list[Point]:
    """Own GPUs, always on, for the base load; Modal for what is more at once."""
    fleet = replace(shipped_fleet(), max_containers=1000)
    return [
        Point(
            (("requests/min", per_minute), ("own GPUs", count)),
            day(per_minute, 10_000, scale),
            replace(fleet, own=count),
        )
        for per_minute in (10, 60)
        for count in OWN
        if count <= per_minute / 3
    ]


def scaledown(scale: float) -> list[Point]:
    """Latency and price against the scale-down window."""
    return [
        Point(
            (("requests/min", rate), ("window, s", window)),
            day(rate, 10_000, scale),
            Fleet(timings(GPU), scaledown_window_s=window),
        )
        for rate in (1, 10, 60)
        for window in WINDOWS_S
    ]


def minimum(scale: float) -> list[Point]:
    """Latency and price against containers kept warm."""
    return [
        Point(
            (("requests/min", rate), ("min containers", count)),
            day(rate, 10_000, scale),
            Fleet(timings(GPU), min_containers=count),
        )
        for rate in (1, 10, 30)
        for count in MIN_CONTAINERS
    ]


def cache(scale: float) -> list[Point]:
    """Latency, price and hits against the LoRA cache in each container's memory."""
    return [
        Point(
            (("LoRAs", loras), ("routing", routing.value), ("cache, GiB", size)),
            steady(60, loras, 1800, _COUNTED * scale),
            Fleet(
                timings(GPU),
                cache_bytes=int(size * GIB),
                min_containers=8,
                routing=routing,
            ),
        )
        for loras in LORAS
        for routing in (Routing.RECENT, Routing.AFFINITY)
        for size in CACHES_GIB
    ]


def gpus(scale: float) -> list[Point]:
    """Latency and price against the kind of GPU and of cold start."""
    return [
        Point(
            (("GPU", gpu), ("weights from", start.value)),
            day(10, 10_000, scale),
            Fleet(timings(gpu, start)),
        )
        for gpu in GPUS
        for start in ColdStart
    ]


def rates(scale: float) -> list[Point]:
    """Latency and price against the request rate."""
    return [
        Point(
            (("GPU", gpu), ("requests/min", rate)),
            steady(rate, 100_000, 240, max(_COUNTED, rate) * scale),
            Fleet(timings(gpu)),
        )
        for gpu in ("L4", "L40S", "H100")
        for rate in RATES
    ]


STUDIES = {
    "shipped": shipped,
    "starts": starts,
    "own": own,
    "scaledown": scaledown,
    "minimum": minimum,
    "cache": cache,
    "gpus": gpus,
    "rates": rates,
}


# How containers start, and GiB of LoRAs on the volume. The small one is the default's; the GPU's
# memory in a snapshot is tried with the large one, which every answer so far has had.
WAYS = (
    (ColdStart.SNAPSHOT, 20),
    (ColdStart.SNAPSHOT, 500),
    (ColdStart.GPU_SNAPSHOT, 500),
)


def candidates(
    per_minute: float, loras: int, scale: float, download_mb_s: float, slowest_s: float
) -> list[Point]:
    """Settings among which the cheapest for a latency is looked for, at an even load; without the
    GPUs whose picture alone takes longer than `slowest_s`."""
    points: list[Point] = []
    for gpu in GPUS:
        lane = timings(gpu).lane_s
        if lane + timings(gpu).after_s > slowest_s:
            continue
        lanes = per_minute / 60 * lane  # containers that the work itself fills
        counts = sorted({0, *(math.ceil(lanes * share) for share in (1.0, 1.3, 2.0))})
        points += [
            Point(
                (
                    ("GPU", gpu),
                    ("weights from", start.value),
                    ("LoRA volume, GiB", volume),
                    ("window, s", window),
                    ("min containers", count),
                ),
                steady(per_minute, loras, 360, max(_COUNTED, per_minute) / 2 * scale),
                _downloads(
                    Fleet(
                        timings(gpu, start),
                        scaledown_window_s=window,
                        min_containers=count,
                        volume_bytes=volume * GIB,
                        read_ahead=shipped_fleet().read_ahead,
                    ),
                    download_mb_s,
                ),
            )
            for start, volume in WAYS
            for window in (15, 60, 300)
            for count in counts
        ]
    return points


def cheapest(answers: Sequence[Answer], p95_s: float) -> Answer | None:
    """The answer with the lowest price among those whose p95 is at most `p95_s`."""
    good = [answer for answer in answers if answer.row["p95_s"] <= p95_s]
    return min(good, key=lambda answer: answer.row["usd_per_image"], default=None)


def without_gpu_snapshots(answers: Sequence[Answer]) -> list[Answer]:
    """Those whose containers begin in a way that Modal does not call an experiment."""
    alpha = ColdStart.GPU_SNAPSHOT.value
    return [answer for answer in answers if answer.labels["weights from"] != alpha]


def _answer(point: Point, seed: int) -> Answer:
    outcome: Outcome = simulate(point.load, point.fleet, seed)
    return Answer(dict(point.labels), outcome.row())


def run(points: Sequence[Point], seed: int, processes: int = 1) -> list[Answer]:
    """All points simulated, in their order; the number of processes changes nothing but time."""
    one = partial(_answer, seed=seed)
    if processes == 1:
        return [one(point) for point in points]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(one, points))
