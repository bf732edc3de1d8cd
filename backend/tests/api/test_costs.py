"""What a content's cost is made of, and what the summary adds up."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from app.services.contents import attempt as drawing
from app.services.costs import CallClock, price
from sdxl_contract.prices import USD_PER_SECOND
from sdxl_contract.result import Timings
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

TIMINGS = Timings(
    queue=50.0, download=3.0, parse=0.5, apply=1.0, text_encode=0.5, denoise=8.0, decode=1.0,
    restore=0.5, image_encode=0.5,
)  # fmt: skip


class Ticks:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_a_cost_is_split_into_start_lora_and_drawing() -> None:
    cost = price(TIMINGS.model_dump(), "L4", cold_start=30.0)
    assert cost.parts == {"cold_start": 30.0, "lora": 5.0, "generation": 10.0}
    assert cost.seconds == 45.0
    assert cost.usd == pytest.approx(45 * USD_PER_SECOND["L4"])


def test_a_start_is_the_wait_for_the_first_word_after_the_last_sending() -> None:
    now = Ticks()
    clock = CallClock(now)
    now.time += 60  # an attempt that failed
    clock.sent()
    now.time += 31
    clock.heard()
    now.time += 12
    clock.heard()
    assert clock.cold_start({"denoise": 12.0}) == 31.0


def test_without_progress_a_start_is_what_the_workers_seconds_leave_unexplained() -> None:
    now = Ticks()
    clock = CallClock(now)
    now.time += 45
    assert clock.cold_start({"queue": 3.0, "denoise": 12.0}) == 30.0


def test_a_warm_worker_has_no_start() -> None:
    now = Ticks()
    clock = CallClock(now)
    now.time += 0.9
    clock.heard()
    assert clock.cold_start({"denoise": 8.0}) == 0.0


async def test_contents_and_summary_show_the_parts(
    start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowStart(CallClock):
        def cold_start(self, timings: Mapping[str, float] | None = None) -> float:
            return 30.0

    monkeypatch.setattr(drawing, "CallClock", SlowStart)
    monkeypatch.setattr("testkit.doubles.inference_double.SECONDS", TIMINGS)
    async with start_backend(inference=InferenceDouble()) as backend:
        lora = await backend.upload(kohya_lora())
        content = await backend.generate(loras=[{"lora_model_id": lora["id"]}])
        await backend.generate()
        summary = (await backend.http.get("/api/v1/costs/summary")).json()
    second = USD_PER_SECOND["L4"]
    parts = content["cost"]["parts"]
    assert {name: part["seconds"] for name, part in parts.items()} == {
        "cold_start": 30.0, "lora": 5.0, "generation": 10.0,
    }  # fmt: skip
    assert parts["lora"]["usd"] == pytest.approx(5 * second)
    assert sum(part["usd"] for part in parts.values()) == pytest.approx(content["cost"]["usd"])
    for group in (summary["total"], summary["by_day"][0]):
        assert group["cold_start_usd"] == pytest.approx(60 * second)
        assert group["lora_usd"] == pytest.approx(10 * second)
        assert group["generation_usd"] == pytest.approx(20 * second)
        assert group["actual_usd"] == pytest.approx(90 * second)
    [by_lora] = summary["by_lora"]
    assert (by_lora["name"], by_lora["contents"], by_lora["lora_seconds"]) == ("Ink", 1, 5.0)


async def test_a_failed_content_costs_nothing_that_is_known(
    backend: Backend, inference: InferenceDouble
) -> None:
    inference.failures.append(RuntimeError("x"))
    content = await backend.generate()
    assert (content["status"], content["cost"]) == ("failed", None)
    total = (await backend.http.get("/api/v1/costs/summary")).json()["total"]
    assert (total["contents"], total["actual_usd"]) == (0, 0.0)
