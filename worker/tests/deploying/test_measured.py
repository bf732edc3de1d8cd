"""A deployment's figures: seconds and dollars by phase, with and without a cold start."""

from __future__ import annotations

from typing import Any

import pytest

from sdxl_contract.result import StartReport
from sdxl_worker.deploying.measured import Sample, report


def sample(seconds: float, denoise: float, price: float | None = 0.001) -> Sample:
    result: dict[str, Any] = {"timings": {"apply": 0.5, "denoise": denoise}}
    if price is not None:
        working = 0.5 + denoise
        result["cost"] = {"gpu": "L40S", "seconds": working, "usd_per_second": price}
    return Sample(result, seconds)


def test_a_phase_costs_its_seconds_times_the_container_s_price() -> None:
    figures = report(None, [sample(4.0, 3.0), sample(6.0, 5.0), sample(5.0, 4.0)], idle_s=120)

    assert figures["warm"]["seconds"] == 5.0
    assert figures["warm"]["usd"] == pytest.approx(4.5 * 0.001)
    assert figures["warm"]["phases"]["denoise"] == {"seconds": 4.0, "usd": 0.004}
    assert "cold" not in figures


def test_a_lonely_picture_pays_for_the_start_and_the_idle_window() -> None:
    figures = report(sample(20.0, 4.0), [sample(5.0, 4.0)], idle_s=120)

    assert figures["cold"]["start_seconds"] == 15.0
    # 15 s of start, 4.5 s of work, 120 s idle
    assert figures["cold"]["usd"] == pytest.approx(139.5 * 0.001)
    assert figures["cold"]["idle_usd"] == pytest.approx(0.12)


def test_each_phase_of_a_start_has_its_seconds_and_dollars() -> None:
    told = StartReport(way="weights", seconds={"weights": 0.5, "to_gpu": 1.5, "warm_up": 4.0})
    # The first one also fetched a LoRA for two seconds: that is no part of the start.
    figures = report(sample(22.0, 6.0), [sample(5.0, 4.0)], 120, told)["cold"]

    assert figures["way"] == "weights"
    assert figures["start_seconds"] == 15.0
    assert figures["phases"] == {
        "platform": {"seconds": 9.0, "usd": 0.009},
        "weights": {"seconds": 0.5, "usd": 0.0005},
        "to_gpu": {"seconds": 1.5, "usd": 0.0015},
        "warm_up": {"seconds": 4.0, "usd": 0.004},
    }
    parts = sum(phase["usd"] for phase in figures["phases"].values())
    assert figures["start_usd"] == pytest.approx(parts)
    assert figures["usd"] == pytest.approx(parts + 0.0065 + figures["idle_usd"])


def test_without_a_price_no_dollars_are_made_up() -> None:
    figures = report(None, [sample(5.0, 4.0, price=None)], idle_s=120)

    assert figures["warm"]["usd"] is None
    assert figures["warm"]["phases"]["denoise"]["usd"] is None
