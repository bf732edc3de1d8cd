"""The simulated fleet against closed forms, and its sums against themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fleet import studies
from benchmarks.fleet.load import DAY, Load, arrivals, popularity
from benchmarks.fleet.model import Fleet, Routing, Service, simulate
from benchmarks.fleet.outcome import Outcome
from deploy.timings import GIB, Timings, timings

pytestmark = pytest.mark.process


SERVICE_S = 4.0
PRICE = 0.0005
# A container that starts at once, with LoRAs that take no time: nothing but the lane.
INSTANT = Timings(
    gpu="none",
    lane_s=SERVICE_S,
    after_s=0.0,
    cold_start_s=0.0,
    usd_per_second=PRICE,
    download_latency_s=0.0,
    download_rate=math.inf,
    volume_latency_s=0.0,
    volume_rate=math.inf,
    parse_s_per_byte=0.0,
)


def queue(containers: int, utilisation: float, service: Service) -> Outcome:
    """Poisson arrivals at `containers` that never start or end."""
    per_minute = 60 * utilisation * containers / SERVICE_S
    fleet = Fleet(
        INSTANT,
        min_containers=containers,
        max_containers=containers,
        read_ahead=0,
        service=service,
    )
    hours = 40_000 / per_minute / 60
    return simulate(Load(per_minute, hours, loras=1, settle_hours=hours / 20), fleet, seed=1)


def erlang_c_wait(servers: int, utilisation: float) -> float:
    """Mean seconds in the line of an M/M/c queue."""
    offered = servers * utilisation
    full = offered**servers / math.factorial(servers) / (1 - utilisation)
    busy = full / (sum(offered**k / math.factorial(k) for k in range(servers)) + full)
    return busy * SERVICE_S / servers / (1 - utilisation)


@pytest.mark.parametrize("utilisation", [0.3, 0.7])
def test_one_container_waits_as_m_m_1(utilisation: float) -> None:
    expected = utilisation / (1 - utilisation) * SERVICE_S

    assert queue(1, utilisation, Service.EXPONENTIAL).waits.mean() == pytest.approx(
        expected, rel=0.1
    )


def test_a_fixed_service_waits_half_as_long() -> None:
    utilisation = 0.7
    expected = utilisation / (1 - utilisation) * SERVICE_S / 2
    waits = queue(1, utilisation, Service.FIXED).waits.mean()

    assert waits == pytest.approx(expected, rel=0.1)
    # The control: the check tells the two apart.
    assert waits != pytest.approx(2 * expected, rel=0.1)


def test_several_containers_wait_as_m_m_c() -> None:
    outcome = queue(4, 0.8, Service.EXPONENTIAL)

    assert outcome.waits.mean() == pytest.approx(erlang_c_wait(4, 0.8), rel=0.1)
    assert outcome.utilisation == pytest.approx(0.8, rel=0.03)


def test_requests_in_the_system_are_rate_times_latency() -> None:
    """Little's law, exact when counted from empty to empty."""
    outcome = simulate(Load(30, 2, daily=True, loras=500), Fleet(timings("L40S")))

    assert outcome.in_system_area == pytest.approx(float(outcome.latencies.sum()))


def che_hit_rate(loras: int, s: float, held: int) -> float:
    """Che's approximation: an object is held if asked for within the characteristic time."""
    shares = popularity(loras, s)
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        if (1 - np.exp(-shares * middle)).sum() < held:
            low = middle
        else:
            high = middle
    return float((shares * (1 - np.exp(-shares * low))).sum())


@pytest.mark.parametrize("held", [20, 200])
def test_the_cache_hits_as_che_says(held: int) -> None:
    size = 1_000_000
    fleet = Fleet(
        INSTANT, min_containers=1, max_containers=1, cache_bytes=held * size, read_ahead=0
    )
    load = Load(10, 50, loras=2000, zipf_s=0.9, lora_bytes=size, settle_hours=10)
    hits = simulate(load, fleet, seed=2).memory_hit_rate

    assert hits == pytest.approx(che_hit_rate(2000, 0.9, held), abs=0.01)
    # The control: a cache of half the size would be noticed.
    assert hits != pytest.approx(che_hit_rate(2000, 0.9, held // 2), abs=0.01)


def test_what_is_paid_is_what_ran() -> None:
    """A fleet of fixed size is paid from the first second to the last."""
    fleet = Fleet(timings("A10"), min_containers=7, max_containers=7)
    outcome = simulate(Load(20, 1, loras=100), fleet)

    assert outcome.container_seconds == pytest.approx(7 * outcome.horizon_s)
    assert outcome.usd == pytest.approx(outcome.container_seconds * fleet.timings.usd_per_second)
    assert outcome.usd_per_image * outcome.images == pytest.approx(outcome.usd)
    # But for what is drawn after the last hour, on at most seven lanes and all that waited there.
    drawn = outcome.images * fleet.timings.lane_s
    assert drawn - 7 * 3 * fleet.timings.lane_s <= outcome.lane_busy_s <= drawn


def test_nobody_asks_nothing_is_paid_but_what_is_kept_warm() -> None:
    silence = Load(0, 10, loras=10, settle_hours=1)
    asleep = simulate(silence, Fleet(timings("L40S")))
    kept = Fleet(timings("L40S"), min_containers=2)
    awake = simulate(silence, kept)

    assert (asleep.images, asleep.usd, asleep.starts) == (0, 0, 0)
    assert awake.usd == pytest.approx(2 * 9 * 3600 * kept.timings.usd_per_second)


def test_the_price_of_an_image_does_not_depend_on_how_long_is_simulated() -> None:
    """A short run has as long a tail as a long one: paying for it would show here."""
    fleet = Fleet(timings("L40S"))
    short, long = (
        simulate(Load(6000, 0.1 + minutes / 60, loras=10, settle_hours=0.1), fleet, seed=2)
        for minutes in (0.5, 4)
    )

    assert short.usd_per_image == pytest.approx(long.usd_per_image, rel=0.04)


@pytest.mark.parametrize(("cache_bytes", "hits"), [(0, False), (GIB, True)])
def test_every_look_into_the_cache_misses_or_hits_as_by_hand(cache_bytes: int, hits: bool) -> None:
    """One container, one LoRA, requests far apart: all but the first hit, or none does."""
    own = timings("L40S")
    fleet = Fleet(own, min_containers=1, max_containers=1, cache_bytes=cache_bytes, volume_bytes=0)
    load = Load(0.1, 2000, loras=1, lora_bytes=100_000_000)
    outcome = simulate(load, fleet, seed=9)
    fetch = own.download_s(100_000_000)
    alone = own.lane_s + own.after_s + (0 if hits else fetch)

    # A few come while the same LoRA is being fetched, and wait for that.
    fetched = outcome.origins["download"] + outcome.origins["joined"]
    assert fetched == (1 if hits else outcome.images)
    assert outcome.origins["memory"] == outcome.images - fetched
    assert outcome.quantile(0.5) == pytest.approx(alone)


def test_a_lonely_request_pays_its_cold_start_its_work_and_its_window() -> None:
    steady = replace(timings("L4"), cold_start_sigma=0.0)
    fleet = Fleet(steady, scaledown_window_s=30)
    # So rare that each finds nothing running.
    outcome = simulate(Load(0.001, 500_000 / 60, loras=1, lora_bytes=1000), fleet, seed=3)
    own = fleet.timings
    work = own.lane_s + own.after_s

    assert outcome.images > 300
    assert outcome.starts == pytest.approx(outcome.images, rel=0.02)
    assert outcome.quantile(0.5) == pytest.approx(own.cold_start_s + work, abs=0.5)
    paid = outcome.container_seconds / outcome.images
    assert paid == pytest.approx(own.cold_start_s + work + 30, rel=0.02)


def test_starts_are_spread_as_their_logarithm_says() -> None:
    """A lognormal's median is its factor's; its 95 % quantile lies 1.645 sigma above."""
    own = replace(timings("L4"), cold_start_sigma=0.5, cold_start_s=20.0)
    load = Load(0.001, 1_500_000 / 60, loras=1, lora_bytes=1000)
    starts = simulate(load, Fleet(own, scaledown_window_s=30), seed=3).latencies
    starts = starts - own.lane_s - own.after_s - own.volume_latency_s

    assert np.quantile(starts, 0.5) == pytest.approx(20, rel=0.08)
    assert np.quantile(starts, 0.95) == pytest.approx(20 * math.exp(1.645 * 0.5), rel=0.12)


def test_own_gpus_wait_as_m_m_c_and_cost_nothing_at_modal() -> None:
    fleet = Fleet(INSTANT, own=4, max_containers=0, read_ahead=0, service=Service.EXPONENTIAL)
    per_minute = 60 * 0.8 * 4 / SERVICE_S
    hours = 40_000 / per_minute / 60
    outcome = simulate(Load(per_minute, hours, loras=1, settle_hours=hours / 20), fleet, seed=1)

    assert outcome.waits.mean() == pytest.approx(erlang_c_wait(4, 0.8), rel=0.1)
    assert (outcome.usd, outcome.peak_containers) == (0, 0)
    assert outcome.own_images == outcome.images
    assert outcome.utilisation == pytest.approx(0.8, rel=0.03)


def test_modal_draws_what_own_gpus_are_too_busy_for() -> None:
    load = Load(30, 3, loras=100, settle_hours=0.5)
    outcomes = [simulate(load, Fleet(timings("L40S"), own=count)) for count in (0, 1, 2, 30)]

    shares = [outcome.own_images / outcome.images for outcome in outcomes]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    bills = [outcome.usd for outcome in outcomes]
    assert bills == sorted(bills, reverse=True)
    assert bills[-1] == 0
    # Own ones come first: the first is hardly ever idle while Modal's draw.
    assert outcomes[1].own_images * INSTANT.lane_s > 0.5 * outcomes[1].horizon_s


def test_no_request_is_lost_or_served_twice() -> None:
    load = Load(200, 0.5, batch=3, loras=1000)
    times, _ = arrivals(load, np.random.default_rng(4))
    outcome = simulate(load, Fleet(timings("L40S"), max_containers=20), seed=4)

    assert outcome.images == len(times)
    assert sum(outcome.origins.values()) == outcome.images
    assert outcome.peak_containers <= 20


def test_the_settling_time_is_neither_counted_nor_paid() -> None:
    fleet = Fleet(INSTANT, min_containers=3, max_containers=3)
    load = Load(20, 2, loras=1, settle_hours=1)
    outcome = simulate(load, fleet)
    whole = simulate(replace(load, settle_hours=0), fleet)

    assert outcome.container_seconds == pytest.approx(3 * (whole.horizon_s - 3600))
    assert np.array_equal(outcome.latencies, whole.latencies[-outcome.images :])


def test_the_seed_decides_everything() -> None:
    points = studies.gpus(0.01)[:2]

    assert studies.run(points, seed=5) == studies.run(points, seed=5, processes=2)
    assert studies.run(points, seed=5) != studies.run(points, seed=6)


def test_affinity_finds_more_in_memory_than_chance() -> None:
    fleet = Fleet(timings("L40S"), min_containers=8, max_containers=8, cache_bytes=GIB)
    load = Load(50, 1, loras=300, settle_hours=0.3)
    hits = {
        routing: simulate(load, replace(fleet, routing=routing)).memory_hit_rate
        for routing in Routing
    }

    assert hits[Routing.AFFINITY] > hits[Routing.RANDOM] + 0.1


def test_arrivals_keep_their_mean_through_the_day() -> None:
    times, loras = arrivals(Load(20, 24, daily=True, loras=100), np.random.default_rng(6))

    assert sum(DAY) / 24 == pytest.approx(1, abs=0.05)
    assert len(times) == pytest.approx(20 * 60 * sum(DAY), rel=0.02)
    counts = np.bincount(loras, minlength=100) / len(loras)
    assert counts[0] == pytest.approx(popularity(100, 0.9)[0], rel=0.1)
