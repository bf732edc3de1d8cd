"""The simulated fleet: requests, containers, caches and the rule that starts and stops containers.

One container has one lane (one picture at a time), as the worker has, and may hold `read_ahead`
more requests whose LoRAs it fetches meanwhile. Requests wait in one line for any container with a
free place, as Modal's web functions do (no sticky routing); `Routing` has what else could be done.
Containers: as many as there are requests in the system, between `min_containers` and
`max_containers`; an idle one ends after `scaledown_window_s`. Every second from its start to its
end is paid, the cold start too. Own GPUs (`own`) are always there, are given work before others of
as much, and are not in the price.
Must not know: where the seconds come from, what is plotted.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from benchmarks.fleet.load import Load, arrivals, lora_sizes
from benchmarks.fleet.outcome import Outcome
from deploy.timings import GIB, Timings


class Routing(StrEnum):
    """Which container with a free place gets the next request."""

    RECENT = "recent"  # the one used last: lets the others end
    RANDOM = "random"
    AFFINITY = "affinity"  # one that holds the LoRA, when that costs no waiting


class Service(StrEnum):
    """How the seconds on the lane vary; the exponential one is for comparing with theory."""

    FIXED = "fixed"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True)
class Fleet:
    """The settings in question."""

    timings: Timings
    scaledown_window_s: float = 120.0
    min_containers: int = 0
    max_containers: int = 10_000
    own: int = 0
    cache_bytes: int = 4 * GIB
    volume_bytes: int = 500 * GIB
    read_ahead: int = 2
    routing: Routing = Routing.RECENT
    service: Service = Service.FIXED


class _Request:
    __slots__ = ("arrived", "counts", "lane_at", "lora", "number")

    def __init__(self, number: int, arrived: float, lora: int, *, counts: bool) -> None:
        self.number = number
        self.counts = counts
        self.arrived = arrived
        self.lora = lora
        self.lane_at = 0.0


class _Container:
    """One container: its lane, its line, its cache."""

    __slots__ = (
        "busy",
        "cache",
        "cache_used",
        "fetching",
        "idle_since",
        "lane",
        "load",
        "own",
        "reaping",
        "started",
    )

    def __init__(self, now: float, *, own: bool) -> None:
        self.started = now
        self.own = own
        self.load = 0
        self.busy = False
        self.lane: deque[_Request] = deque()
        self.cache: OrderedDict[int, int] = OrderedDict()
        self.cache_used = 0
        self.fetching: dict[int, list[_Request]] = {}
        self.idle_since = now
        self.reaping = False


class _Simulation:
    """One run: a heap of what is due, and the requests in their order beside it."""

    def __init__(self, load: Load, fleet: Fleet, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._random = random.Random(seed)
        self._times, self._loras = arrivals(load, rng)
        self._sizes = lora_sizes(load, rng).tolist()
        self._settle = load.settle_hours * 3600
        self._until = load.hours * 3600
        self._fleet = fleet
        self._timings = fleet.timings
        self._now = 0.0
        # (when, number, call, arguments): the number keeps what is due at once in its order.
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = 0
        self._line: deque[_Request] = deque()
        self._slots = 1 + fleet.read_ahead
        # Ready containers by how many requests they hold; a dict keeps its order of insertion.
        self._by_load: list[dict[_Container, None]] = [{} for _ in range(self._slots + 1)]
        self._own_by_load: list[dict[_Container, None]] = [{} for _ in range(self._slots + 1)]
        self._holders: dict[int, dict[_Container, None]] = {}
        # As a fleet that has run for long left it: the most popular LoRAs, as far as they fit.
        held = int(np.searchsorted(np.cumsum(self._sizes), fleet.volume_bytes, side="right"))
        self._on_volume = range(held)
        self._alive = 0
        self._in_system = 0
        self._left = len(self._times)
        self._area = 0.0
        self._area_at = 0.0
        self._done: list[tuple[int, float, float]] = []
        self._origins = {"memory": 0, "joined": 0, "volume": 0, "download": 0}
        self._seconds = 0.0
        self._peak = 0
        self._starts = 0
        self._drawn_own = 0
        self._lane_busy = 0.0
        self._running: dict[_Container, None] = {}

    def run(self) -> Outcome:
        """Through the load's hours, then until the last request is answered, unpaid."""
        for _ in range(self._fleet.own):
            self._start_container(warm=True, own=True)
        for _ in range(self._fleet.min_containers):
            self._start_container(warm=True)
        due = self._due
        number = 0
        requests = zip(self._times.tolist(), self._loras.tolist(), strict=True)
        time, lora = next(requests, (math.inf, 0))
        while self._left or (due and due[0][0] <= self._until):
            if due and due[0][0] < time:
                self._now, _, call, arguments = heapq.heappop(due)
                call(*arguments)
                continue
            self._now = time
            self._arrive(_Request(number, time, lora, counts=time >= self._settle))
            number += 1
            time, lora = next(requests, (math.inf, 0))
        for container in self._running:
            self._pay(container, self._until)
        self._done.sort()
        table = np.array(self._done, dtype=np.float64).reshape(-1, 3)
        return Outcome(
            latencies=table[:, 1],
            waits=table[:, 2],
            origins=self._origins,
            container_seconds=self._seconds,
            usd=self._seconds * self._timings.usd_per_second,
            peak_containers=self._peak,
            starts=self._starts,
            horizon_s=self._until - self._settle,
            in_system_area=self._area,
            lane_busy_s=self._lane_busy,
            own_images=self._drawn_own,
            own_seconds=self._fleet.own * (self._until - self._settle),
        )

    # --- requests -----------------------------------------------------------------------------

    def _arrive(self, request: _Request) -> None:
        self._count(+1)
        self._line.append(request)
        self._dispatch()
        self._scale_up()

    def _count(self, change: int) -> None:
        now = self._now
        since = max(self._area_at, self._settle)
        self._area += self._in_system * max(0.0, now - since)
        self._area_at = now
        self._in_system += change

    def _dispatch(self) -> None:
        while self._line:
            container = self._choose(self._line[0].lora)
            if container is None:
                return
            self._take(container, self._line.popleft())

    def _choose(self, lora: int) -> _Container | None:
        """A container with a free place, the emptiest first; None if there is none."""
        for load in range(self._slots):
            bucket = self._own_by_load[load] or self._by_load[load]
            if not bucket:
                continue
            if self._fleet.routing is Routing.AFFINITY:
                for holder in self._holders.get(lora, ()):
                    if holder.load == load:
                        return holder
            if self._fleet.routing is Routing.RANDOM:
                return self._random.choice(list(bucket))
            return next(reversed(bucket))
        return None

    def _set_load(self, container: _Container, load: int) -> None:
        buckets = self._own_by_load if container.own else self._by_load
        del buckets[container.load][container]
        container.load = load
        buckets[load][container] = None

    def _take(self, container: _Container, request: _Request) -> None:
        """Give `request` a place; its LoRA is fetched while others draw."""
        self._set_load(container, container.load + 1)
        lora = request.lora
        if lora in container.cache:
            container.cache.move_to_end(lora)
            self._origins["memory"] += request.counts
            self._line_up(container, request)
            return
        if lora in container.fetching:
            self._origins["joined"] += request.counts
            container.fetching[lora].append(request)
            return
        size = self._sizes[lora]
        if lora in self._on_volume:
            self._origins["volume"] += request.counts
            seconds = self._timings.volume_s(size)
        else:
            self._origins["download"] += request.counts
            seconds = self._timings.download_s(size)
        container.fetching[lora] = [request]
        self._later(seconds, self._fetched, container, lora)

    def _fetched(self, container: _Container, lora: int) -> None:
        self._remember(container, lora)
        for request in container.fetching.pop(lora):
            self._line_up(container, request)

    def _remember(self, container: _Container, lora: int) -> None:
        size = self._sizes[lora]
        if size > self._fleet.cache_bytes:
            return
        container.cache[lora] = size
        container.cache_used += size
        self._holders.setdefault(lora, {})[container] = None
        while container.cache_used > self._fleet.cache_bytes:
            old, old_size = container.cache.popitem(last=False)
            container.cache_used -= old_size
            self._holders[old].pop(container, None)

    def _line_up(self, container: _Container, request: _Request) -> None:
        container.lane.append(request)
        if not container.busy:
            self._draw(container)

    def _draw(self, container: _Container) -> None:
        container.busy = True
        request = container.lane.popleft()
        request.lane_at = self._now
        seconds = self._timings.lane_s
        if self._fleet.service is Service.EXPONENTIAL:
            seconds = self._random.expovariate(1 / seconds)
        self._lane_busy += self._counted(self._now, self._now + seconds)
        self._later(seconds, self._drawn, container, request)

    def _drawn(self, container: _Container, request: _Request) -> None:
        container.busy = False
        if container.lane:
            self._draw(container)
        self._later(self._timings.after_s, self._answered, container, request)

    def _answered(self, container: _Container, request: _Request) -> None:
        now = self._now
        self._count(-1)
        if request.counts:
            waited = request.lane_at - request.arrived
            self._done.append((request.number, now - request.arrived, waited))
            self._drawn_own += container.own
        self._left -= 1
        self._set_load(container, container.load - 1)
        self._dispatch()
        if container.load == 0:
            container.idle_since = now
            self._watch_idle(container)

    # --- containers ---------------------------------------------------------------------------

    def _scale_up(self) -> None:
        fleet = self._fleet
        wanted = min(max(self._in_system - fleet.own, fleet.min_containers), fleet.max_containers)
        while self._alive - fleet.own < wanted:
            self._start_container()

    def _start_container(self, *, warm: bool = False, own: bool = False) -> None:
        container = _Container(self._now, own=own)
        self._running[container] = None
        self._alive += 1
        self._starts += 1
        self._peak = max(self._peak, self._alive - self._fleet.own)
        if warm:
            self._ready(container)
        else:
            self._later(self._start_seconds(), self._ready, container)

    def _start_seconds(self) -> float:
        median, sigma = self._timings.cold_start_s, self._timings.cold_start_sigma
        return median * self._random.lognormvariate(0.0, sigma) if sigma else median

    def _ready(self, container: _Container) -> None:
        (self._own_by_load if container.own else self._by_load)[0][container] = None
        self._dispatch()
        if container.load == 0:
            container.idle_since = self._now
            self._watch_idle(container)

    def _watch_idle(self, container: _Container) -> None:
        if not container.reaping and not container.own:
            container.reaping = True
            self._later(self._fleet.scaledown_window_s, self._reap, container)

    def _reap(self, container: _Container) -> None:
        container.reaping = False
        if container.load > 0:
            return
        left = container.idle_since + self._fleet.scaledown_window_s - self._now
        if left > 1e-6:
            container.reaping = True
            self._later(left, self._reap, container)
        elif self._alive - self._fleet.own > self._fleet.min_containers:
            del self._by_load[0][container]
            del self._running[container]
            for lora in container.cache:
                self._holders[lora].pop(container, None)
            self._alive -= 1
            self._pay(container, self._now)

    def _pay(self, container: _Container, end: float) -> None:
        if not container.own:
            self._seconds += self._counted(container.started, end)

    def _counted(self, start: float, end: float) -> float:
        """Seconds from `start` to `end` after the settling time and within the load's hours.

        What comes after the last hour serves requests whose successors are not simulated: counted,
        it would make every image of a short run dearer than in a fleet that goes on.
        """
        return max(0.0, min(end, self._until) - max(start, self._settle))

    def _later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._due, (self._now + seconds, self._numbers, call, arguments))


def simulate(load: Load, fleet: Fleet, seed: int = 0) -> Outcome:
    """One run; the same arguments give the same outcome."""
    return _Simulation(load, fleet, seed).run()
