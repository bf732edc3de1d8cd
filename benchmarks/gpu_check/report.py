"""What was found, row by row, and what was aimed at.

Must not know: how anything is measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.gpu_check.speeds import Rows, release

# Row → at most; for an H100 or H200, 1024x1024, 28 steps, a rank-32 LoRA on 722 layers.
AIMS = {
    "http.cached_lora_ms": 1500, "compiled.cached_lora_ms": 1150,
    "fp8.cached_lora_ms": 850, "fp8_quality.points_lost_base": 2, "fp8_quality.points_lost_lora": 2,
    "http.fetched_to_applied_ms": 350, "http.slower_while_fetching": 1.05,
    "ours.switch_ms": 15, "ours.restore_with_proof_ms": 10, "ours.same_again_ms": 1,
    "ours.parse_to_applied_ms": 60, "ours.text_ms": 12, "ours.vae_ms": 60,
    "compared.start_of_diffusers": 0.5,
}  # fmt: skip
# Row → at least.
LEAST = {"compared.fused_cycle_times_ours": 2.5, "compared.hotswap_cycle_times_ours": 2.5}


class Report:
    """Rows by section, printed as they come.

    Args:
        keep: called after each section.
    """

    def __init__(self, keep: Callable[[Report], None] = lambda _: None) -> None:
        self.rows: dict[str, Rows] = {}
        self.failed: list[str] = []
        self.left_out: dict[str, str] = {}
        self._started = time.perf_counter()
        self._keep = keep

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._started

    def leave_out(self, rows: Mapping[str, str]) -> None:
        """Row → why this run does not measure it."""
        self.left_out |= rows
        for name, why in rows.items():
            print(f"[{self.seconds:6.1f} s] {name}: left out: {why}", flush=True)

    def part(self, name: str, action: Callable[[], Mapping[str, Any] | None]) -> None:
        """Run one section; an error is a row, and no end."""
        try:
            found = dict(action() or {})
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:1500]}
            self.failed.append(name)
        self.rows.setdefault(name, {}).update(found)
        print(f"[{self.seconds:6.1f} s] {name}: {json.dumps(found)}", flush=True)
        self._keep(self)
        release()

    def found(self, name: str) -> float | None:
        """The value of a row such as `http.cached_lora_ms`; None where there is none."""
        section, row = name.split(".")
        value = self.rows.get(section, {}).get(row)
        return float(value) if isinstance(value, int | float) else None

    def compare(self) -> Rows:
        """Diffusers' rows over ours, a whole request over HTTP each, and our start over theirs."""
        ours = self.found("http.cached_lora_ms")
        start, theirs = self.found("http_start.ready_s"), self.found("start.diffusers_start_s")
        rows: Rows = {}
        if start and theirs:
            rows["start_of_diffusers"] = round(start / theirs, 3)
        for row, name in (
            ("fused_cycle_times_ours", "diffusers.fused_cycle_ms"),
            ("hotswap_cycle_times_ours", "diffusers_hotswap.hotswap_compiled_cycle_ms"),
        ):
            cycle = self.found(name)
            if ours and cycle:
                rows[row] = round(cycle / ours, 3)
        return rows

    def aims(self) -> dict[str, Any]:
        """Row → what was found, what was aimed at, and whether it was met; null: not measured."""
        listed: dict[str, Any] = {}
        for aims, kind in ((AIMS, "at_most"), (LEAST, "at_least")):
            for name, limit in aims.items():
                value = self.found(name)
                met = None
                if value is not None:
                    met = value <= limit if kind == "at_most" else value >= limit
                listed[name] = {"found": value, kind: limit, "met": met}
                if value is None:
                    listed[name]["because"] = self._why_not(name)
        return listed

    def _why_not(self, name: str) -> str:
        """Why a row has no value."""
        section = name.partition(".")[0]
        for place in (name, section):
            if place in self.left_out:
                return self.left_out[place]
        for place in (section, f"{section}_run", "run"):
            if "error" in self.rows.get(place, {}):
                return str(self.rows[place]["error"])
        return "what it is made of was not measured"
