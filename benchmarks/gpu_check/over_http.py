"""The worker over HTTP: its start, its speed, its exactness; a row each.

Must not know: what is timed within one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.full_size import SMALL
from benchmarks.gpu_check import eight_bits, exactness
from benchmarks.gpu_check.inputs import PROMPT, LoraFiles
from benchmarks.gpu_check.processes import START_S, Service, fresh, lora_server, service
from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.speeds import CFG, SCALE, SEED, Rows


@dataclass(frozen=True)
class Size:
    """What is drawn: the model's folder, where, pixels of a side, steps; and how often."""

    model: Path
    device: str
    side: int
    steps: int
    runs: int

    @property
    def small(self) -> bool:
        """Whether it is a dry run."""
        return self.model == SMALL


@dataclass
class Pictures:
    """The pixels of one request's picture, however it was drawn."""

    http_lora: bytes = b""
    fp8_lora: bytes = b""
    ours: bytes = b""
    ours_lora: bytes = b""

    def take(self, name: str, pixels: bytes) -> None:
        """The one over HTTP, of a worker that draws exactly or in 8 bit; another's is none."""
        if name == "http":
            self.http_lora = pixels
        elif name == "fp8":
            self.fp8_lora = pixels

    def fp8_apart(self, speed: object) -> Rows:
        """How far 8 bits' picture is from the exact one; `speed` is what drew it."""
        if not (self.http_lora and self.fp8_lora):
            raise RuntimeError("one of the two pictures is missing")
        if "fp8" not in str(speed):
            return {"mean_difference": None, "no_difference_because": f"drawn {speed}"}
        apart = eight_bits.difference(self.http_lora, self.fp8_lora)
        return {"mean_difference": round(apart, 3)}


@dataclass(frozen=True)
class Worker:
    """A worker that is started, and what is done with it.

    Attributes:
        name: of its rows.
        requests: in random order; 0: only its start.
        log: what it prints.
        start_s: it has, to become ready.
        settings: of its environment.
        meanwhile: entered around the requests in random order, which nobody times.
    """

    name: str
    requests: int
    log: Path
    start_s: float = START_S
    settings: Mapping[str, str] | None = None
    meanwhile: Callable[[], AbstractContextManager[None]] = nullcontext

    def served(self, report: Report, files: LoraFiles, size: Size, pictures: Pictures) -> Rows:
        """Its rows: how long it takes to be ready and to a first picture; a request with a LoRA;
        and whether all are exact."""
        started, name, log = time.perf_counter(), self.name, self.log
        with service(
            size.model, size.device, log, start_s=self.start_s, **self.settings or {}
        ) as worker:
            report.part(f"{name}_start", lambda: begun(worker, size, report.rows[f"{name}_start"]))
            with lora_server(files) as server:
                loras: list[Mapping[str, str]] = [server[one] for one in files.names]
                if self.requests:
                    take = partial(pictures.take, name)
                    report.part(name, lambda: timed(worker, loras, size, report.rows[name], take))
                    with self.meanwhile():
                        report.part(
                            f"{name}_exactness", lambda: self._exact(report, worker, loras, size)
                        )
            if any(failed.startswith(name) for failed in report.failed):
                # Why, as far as it knows: the file goes with the rest of the run.
                print(log.read_text()[-4000:], flush=True)
        return {"s": round(time.perf_counter() - started, 1)}

    def _exact(
        self, report: Report, worker: Service, loras: list[Mapping[str, str]], size: Size
    ) -> None:
        found = exactness.Exactness()
        sides = (64, 96) if size.small else (512, 768, 1024)
        try:
            exactness.check(worker, exactness.cases(loras, sides), self.requests, found)
        finally:
            # Also of a worker that died: what it had drawn until then.
            report.rows[f"{self.name}_exactness"] = found.row()
        if not found.ok:
            report.failed.append(f"{self.name}_exactness")


def begun(worker: Service, size: Size, found: Rows) -> None:
    """Into `found`: seconds to ready, and to the first picture that anybody has; and what the
    worker says of itself."""
    told = ("draw_speed", "speeds_unavailable")
    found["ready_s"] = round(worker.start_s, 2)
    found |= {name: worker.health.get(name) for name in told}
    first = _drawn(worker, _asked(size))
    found["first_picture_s"] = round(worker.start_s + first["wall_s"], 2)


def timed(
    worker: Service,
    loras: list[Mapping[str, str]],
    size: Size,
    found: Rows,
    take: Callable[[bytes], None],
) -> None:
    """Into `found`: a request with a cached LoRA by the worker's own clock; one with a file that
    it has never seen; and one while four such files are fetched. `take` gets the first's pixels."""
    body, runs, new = _asked(size), size.runs, iter(range(1, 256))

    def drawn(lora: Mapping[str, str]) -> dict[str, Any]:
        return _drawn(worker, body | {"loras": [dict(lora) | {"scale": SCALE}]})

    def unseen() -> dict[str, Any]:
        # Of the same size as the one that is timed.
        lora = fresh(loras[0], next(new)) | {"scale": 0.1}
        return _drawn(worker, body | {"loras": [lora], "steps": 1})

    first = drawn(loras[0])
    take(exactness.pixels_of(first)[0])
    found["first_lora_ms"] = _ms(first["generation_time_seconds"])
    found["first_lora_download_ms"] = _ms(first["timings"]["download"])
    alone = [drawn(loras[number % 2]) for number in range(runs + 2)][2:]
    clock = [one["generation_time_seconds"] for one in alone]
    denoise = statistics.median(one["timings"]["denoise"] for one in alone)
    drawing = alone[-1].get("drawing") or {}
    found |= {
        "cached_lora_ms": _ms(statistics.median(clock)),
        "cached_lora_ms_all": [_ms(one) for one in clock],
        "caller_ms": _ms(statistics.median(one["wall_s"] for one in alone)),
        "denoise_ms": _ms(denoise),
        "timings": alone[-1]["timings"],
        "drawing": drawing,
        "speed": drawing.get("speed"),
    }
    fetched = [
        sum(one["timings"][phase] for phase in ("download", "parse", "apply"))
        for one in (unseen() for _ in range(runs))
    ]
    found["fetched_to_applied_ms"] = _ms(statistics.median(fetched))
    found["fetched_to_applied_ms_all"] = [_ms(one) for one in fetched]
    slower, measured, covered, beside = [], [], [], list[float]()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            fetching = [pool.submit(unseen) for _ in range(4)]
            steps = drawn(loras[1])["timings"]["denoise"]
            timings = [one.result()["timings"] for one in fetching]
            times = [one["download"] + one["parse"] for one in timings]
            # As if a file had been on its way, or read, in all of the steps.
            covered.append(min(1.0, max(times) / steps))
            measured.append(steps / denoise)
            slower.append(1 + (measured[-1] - 1) / covered[-1])
            beside += times
    found |= {
        "slower_while_fetching": round(statistics.median(slower), 3),
        "slower_while_fetching_all": [round(one, 3) for one in slower],
        "measured": [round(one, 3) for one in measured],
        "of_the_steps": [round(one, 3) for one in covered],
        "fetched_and_parsed_beside_ms": [_ms(one) for one in beside],
    }


def _asked(size: Size) -> dict[str, Any]:
    return {"prompt": PROMPT, "width": size.side, "height": size.side, "steps": size.steps,
            "seed": SEED, "cfg": CFG, "timeout": 280}  # fmt: skip


def _drawn(worker: Service, body: Mapping[str, Any]) -> dict[str, Any]:
    found = worker.call(body)
    if found["http"] != 200:
        raise RuntimeError(str(found)[:300])
    return found


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)
