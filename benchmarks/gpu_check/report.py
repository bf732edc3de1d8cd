"""What was found, row by row, what was aimed at, and on what machine.

Must not know: how anything is measured.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.full_size import REPOSITORY
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
# Row → at most, as what is aimed at once the first aim is met.
FURTHER = {"fp8.cached_lora_ms": 700}
# What must be so: where it is found not to be, the run has failed.
EXACT = (
    "tests.ok", "http_exactness.ok", "ours_exactness.graph_equals_eager",
    "ours_exactness.graph_sees_every_lora", "ours_exactness.stale_factor_is_found",
    "diffusers_exactness.base_picture_is_ours", "diffusers_exactness.lora_picture_is_ours",
    "diffusers_exactness.lora_picture_is_the_one_over_http",
)  # fmt: skip


class Report:
    """Rows by section, printed as they come.

    Args:
        keep: called after each section.

    Attributes:
        failed: sections and rows that are not as they must be.
        left_out: row → why it is not there.
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
            self.rows.setdefault(name, {}).update(action() or {})
        except Exception as error:
            self.fail(name, error)
        except BaseException as error:
            self.fail(name, error)
            raise
        finally:
            print(f"[{self.seconds:6.1f} s] {name}: {self._told(name)}", flush=True)
        try:
            self._keep(self)
        except OSError as error:
            self.fail("json", error)
        release()

    def _told(self, name: str) -> str:
        return json.dumps(self.rows[name], default=str)

    def fail(self, name: str, error: BaseException) -> None:
        """A section's row says what went wrong."""
        said = f"{type(error).__name__}: {error}"[:1500]
        self.rows.setdefault(name, {})["error"] = said
        if name not in self.failed:
            self.failed.append(name)

    def found(self, name: str) -> float | None:
        """The value of a row such as `http.cached_lora_ms`; None where there is none."""
        section, row = name.split(".")
        value = self._compared() if section == "compared" else self.rows.get(section, {})
        return float(value[row]) if isinstance(value.get(row), int | float) else None

    def _compared(self) -> Rows:
        """Diffusers' rows over ours, a whole request over HTTP each, and our start over theirs."""
        ours = self.found("http.cached_lora_ms")
        start, theirs = self.found("start.ours_s"), self.found("start.diffusers_s")
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
        for name in EXACT:
            value = self.found(name)
            listed[name] = {"met": None if value is None else bool(value)}
        for name, aim in listed.items():
            if aim["met"] is None:
                aim["because"] = self._why_not(name)
            elif another := self._drawn_by_another(name):
                aim |= {"met": False, "because": another}
        for name, limit in FURTHER.items():
            found, met = listed[name].get("found"), listed[name]["met"]
            listed[name]["further"] = {
                "at_most": limit,
                "met": None if met is None else met and found <= limit,
            }
        return listed

    def _drawn_by_another(self, name: str) -> str | None:
        """What drew a row, where that is not the speed that the row is for."""
        section = name.partition(".")[0]
        drawing = self.rows.get(section, {}).get("drawing")
        if section not in ("compiled", "fp8") or not drawing or drawing["speed"] == section:
            return None
        return f"drawn {drawing['speed']}: {json.dumps(drawing['speeds_unavailable'])}"

    def _why_not(self, name: str) -> str:
        """Why a row has no value."""
        section = name.partition(".")[0]
        for place in (name, section):
            if place in self.left_out:
                return self.left_out[place]
        for place in (section, f"{section}_run", "run"):
            if "error" in self.rows.get(place, {}):
                # Its row has all of it.
                return str(self.rows[place]["error"])[:200]
        return "what it is made of was not measured"


def measured_on(device: str) -> dict[str, Any]:
    """What it was measured on, and of what."""
    about: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": _commit(),
        "python": platform.python_version(), "torch": torch.__version__,
        "diffusers": diffusers.__version__, "transformers": transformers.__version__,
        "cores": os.cpu_count(), "load_average": [round(one, 1) for one in os.getloadavg()],
    }  # fmt: skip
    if device != "cuda":
        return about | {"device": device}
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    return about | {
        "device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
        "capability": f"{card.major}.{card.minor}", "memory_bytes": card.total_memory,
    }  # fmt: skip


def _commit() -> str | None:
    """Of this checkout, where that is one and git is there."""
    with suppress(OSError):
        told = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return told.stdout.strip() or None
    return None
