"""Everything that only a GPU can show, on a bare machine, offline; the last line is JSON.

    python -m benchmarks.gpu_check [--json FILE] [--requests N] [--seconds S]
    python -m benchmarks.gpu_check --only http,ours         some sections again
    python -m benchmarks.gpu_check --small --device cpu     the same code on the small model

Where nothing of this project is installed: PYTHONPATH=contract/src:worker/src before it.

In this order: a random model of full size, drawn on the GPU and kept in memory; the worker's start;
a cached LoRA's request, alone and while four others are fetched; requests over HTTP in random
order, each picture against its own first one; diffusers' start as a process of its own; the parts,
ours and diffusers', in one process; the tests marked `gpu`; 8 bits' pictures. Then, as far as there
is time: HTTP again with what compiles for minutes, other ways to draw, files fetched beside another
client. A part that fails is a row that says so, and the others go on; `--json` is written anew
after each. When `--seconds` are over, or it is asked to end, it says what it has.

Exit status: 0 if everything exact was exact; the aims of speed are reported, not enforced.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size import SMALL
from benchmarks.gpu_check import eight_bits, exactness, features, fetching, own_kernels
from benchmarks.gpu_check.inputs import LoraFiles, module_shapes, room, write_loras, write_model
from benchmarks.gpu_check.plan import SECONDS, SECTIONS, Plan, Stopped, ended_in_time, sections
from benchmarks.gpu_check.processes import bytecode, gpu_tests, starts
from benchmarks.gpu_check.report import Report, measured_on
from benchmarks.gpu_check.service import (
    COMPILED_START_S,
    START_S,
    Service,
    fresh,
    lora_server,
    service,
)
from benchmarks.gpu_check.speeds import CFG, SCALE, SEED, Ours, Rows, Theirs, release

# Rows that are no aim's: in the file and the output above, not in the last line.
_DETAILS = ("own_kernels", "fp8_parts", "features", "fetch")


def over_http(
    worker: Service, loras: list[Mapping[str, str]], side: int, steps: int, runs: int
) -> Rows:
    """A request with a cached LoRA by the worker's own clock; one with a file that it has never
    seen; and one while four such files are fetched."""
    body = {"prompt": exactness.PROMPT, "width": side, "height": side, "steps": steps,
            "seed": 7, "timeout": 280}  # fmt: skip
    new = iter(range(1, 256))

    def drawn(lora: Mapping[str, str], scale: float = SCALE, **fields: Any) -> dict[str, Any]:
        found = worker.call(body | {"loras": [dict(lora) | {"scale": scale}]} | fields)
        if found["http"] != 200:
            raise RuntimeError(str(found)[:300])
        return found

    def unseen() -> dict[str, Any]:
        # Of the same size as the one that is timed.
        return drawn(fresh(loras[0], next(new)), 0.1, steps=1)

    first = drawn(loras[0])
    alone = [drawn(loras[number % 2]) for number in range(runs + 2)][2:]
    fetched = [
        sum(one["timings"][phase] for phase in ("download", "parse", "apply"))
        for one in (unseen() for _ in range(runs))
    ]
    denoise = statistics.median(one["timings"]["denoise"] for one in alone)
    slower, beside = [], []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            fetching = [pool.submit(unseen) for _ in range(4)]
            slower.append(drawn(loras[1])["timings"]["denoise"] / denoise)
            beside += [one.result()["timings"]["download"] for one in fetching]
    clock = [one["generation_time_seconds"] * 1e3 for one in alone]
    drawing = alone[-1].get("drawing") or {}
    return {
        "first_lora_ms": round(first["generation_time_seconds"] * 1e3, 1),
        "first_lora_download_ms": round(first["timings"]["download"] * 1e3, 1),
        "fetched_to_applied_ms": round(statistics.median(fetched) * 1e3, 1),
        "fetched_to_applied_ms_all": [round(one * 1e3, 1) for one in fetched],
        "cached_lora_ms": round(statistics.median(clock), 1),
        "cached_lora_ms_all": [round(one, 1) for one in clock],
        "caller_ms": round(statistics.median(one["wall_s"] for one in alone) * 1e3, 1),
        "denoise_ms": round(denoise * 1e3, 1),
        "slower_while_fetching": round(statistics.median(slower), 3),
        "slower_while_fetching_all": [round(one, 3) for one in slower],
        # Beside how much of the steps a file was on its way, each.
        "fetched_beside_ms": [round(one * 1e3, 1) for one in beside],
        "timings": alone[-1]["timings"],
        "drawing": drawing,
        "speed": drawing.get("speed"),
    }


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
        """The one over HTTP, of a worker that draws exactly or in 8 bit."""
        if name == "http":
            self.http_lora = pixels
        else:
            self.fp8_lora = pixels

    def fp8_apart(self, speed: object) -> Rows:
        """How far 8 bits' picture is from the exact one; `speed` is what drew it."""
        if not (self.http_lora and self.fp8_lora):
            raise RuntimeError("one of the two pictures is missing")
        if "fp8" not in str(speed):
            return {"mean_difference": None, "no_difference_because": f"drawn {speed}"}
        apart = eight_bits.difference(self.http_lora, self.fp8_lora)
        return {"mean_difference": round(apart, 3)}


def run(report: Report, options: argparse.Namespace, folder: Path) -> None:
    """All sections, in order."""
    small = options.small
    plan = Plan(
        report, device=options.device, small=small, only=options.only, seconds=options.seconds
    )
    model = SMALL if small else (options.folder or folder) / "model"
    size = Size(model, options.device, *((64, 2, 2) if small else (1024, 28, 5)))
    pictures, made = Pictures(), list[LoraFiles]()

    def make() -> Rows:
        started = time.perf_counter()
        # Its last file: where it is, all of the model is.
        with bytecode():
            if not (model / "model_index.json").exists():
                model.mkdir(parents=True)
                write_model(model, options.device)
        made.append(write_loras(folder, module_shapes(model), 4 if small else 32))
        return {"made_s": round(time.perf_counter() - started, 1)}

    if plan.needs_model:
        report.part("model", make)
    files = made[0] if made else None

    def served(name: str, requests: int, start_s: float = START_S, **settings: str) -> None:
        assert files is not None
        log = folder / f"{name}.log"
        report.part(
            f"{name}_run",
            lambda: _served(report, name, pictures, files, size, requests, log, start_s, settings),
        )

    if files and plan.begins("http"):
        served("http", options.requests)
    if files and plan.begins("start"):
        report.part("start", lambda: starts(
            model, options.device, size.side, size.steps, folder / "start.log",
            report.found("http_start.ready_s"),
        ))  # fmt: skip
    if files:
        _in_one_process(report, plan, files, pictures, size)
    if plan.begins("tests"):
        report.part("tests", gpu_tests)
    if plan.begins("fp8_quality"):
        report.part("fp8_quality", lambda: eight_bits.quality(options.device, 4 if small else 100))
    for name in ("compiled", "fp8"):
        if files and plan.begins(name):
            served(name, options.requests // 4, COMPILED_START_S, DRAW_SPEED=name)
    if pictures.http_lora and "fp8" in report.rows:
        drawn = report.rows["fp8"].get("speed")
        report.part("fp8", lambda: pictures.fp8_apart(drawn))
    if files and plan.begins("features"):
        report.part("features", lambda: _features(report, size))
    if plan.begins("fetch"):
        report.part("fetch", lambda: fetching.rows((8 if small else 170) * 10**6, size.runs))


def _served(
    report: Report,
    name: str,
    pictures: Pictures,
    files: LoraFiles,
    size: Size,
    requests: int,
    log: Path,
    start_s: float,
    settings: Mapping[str, str],
) -> Rows:
    """A worker's rows: its start, its speed, its exactness."""
    started = time.perf_counter()
    with service(size.model, size.device, log, start_s=start_s, **settings) as worker:
        report.part(f"{name}_start", lambda: _started(worker))
        with lora_server(files) as server:
            loras: list[Mapping[str, str]] = [server[one] for one in files.names]
            report.part(name, lambda: over_http(worker, loras, size.side, size.steps, size.runs))
            if name in ("http", "fp8"):
                report.part(
                    name, lambda: pictures.take(name, _http_picture(worker, loras[0], size))
                )
            report.part(
                f"{name}_exactness", lambda: _exact(report, name, worker, loras, size, requests)
            )
    return {"s": round(time.perf_counter() - started, 1)}


def _started(worker: Service) -> Rows:
    told = ("draw_speed", "speeds_unavailable")
    return {"ready_s": round(worker.start_s, 2)} | {name: worker.health.get(name) for name in told}


def _http_picture(worker: Service, lora: Mapping[str, str], size: Size) -> bytes:
    found = worker.call({
        "prompt": exactness.PROMPT, "width": size.side, "height": size.side, "steps": size.steps,
        "seed": SEED, "cfg": CFG, "timeout": 280, "loras": [dict(lora) | {"scale": SCALE}],
    })  # fmt: skip
    return exactness.pixels_of(found)[0]


def _exact(
    report: Report,
    name: str,
    worker: Service,
    loras: list[Mapping[str, str]],
    size: Size,
    requests: int,
) -> None:
    found = exactness.Exactness()
    sides = (64, 96) if size.small else (512, 768, 1024)
    try:
        exactness.check(worker, exactness.cases(loras, sides), requests, found)
    finally:
        # Also of a worker that died: what it had drawn until then.
        report.rows[f"{name}_exactness"] = found.row()
    if not found.ok:
        report.failed.append(f"{name}_exactness")


def _in_one_process(
    report: Report, plan: Plan, files: LoraFiles, pictures: Pictures, size: Size
) -> None:
    """Our parts, then diffusers'; each model is gone before the next one comes."""
    paths = [files.folder / one for one in files.names]
    few = paths[: 2 if size.small else 5]
    held: list[Any] = []

    def made(make: Callable[..., Any]) -> Rows:
        started = time.perf_counter()
        held[:] = [make(size.model, size.device, size.side, size.steps)]
        return {"made_s": round(time.perf_counter() - started, 1)}

    def exact() -> Rows:
        found: Rows = held[0].exact([held[0].parse(path) for path in few])
        wrong = [name for name, value in found.items() if value is not True]
        report.failed.extend(f"ours_exactness.{name}" for name in wrong)
        pictures.ours, pictures.ours_lora = held[0].draw(), held[0].draw_with(paths[0])
        return found

    def equal() -> Rows:
        """Plain diffusers' pictures: of the base, and with the LoRA merged by the same rule."""
        merged = held[0].draw_merged(paths[0])
        found = {}
        if pictures.ours:
            found["base_picture_is_ours"] = held[0].draw() == pictures.ours
            found["lora_picture_is_ours"] = merged == pictures.ours_lora
        if pictures.http_lora:
            found["lora_picture_is_the_one_over_http"] = merged == pictures.http_lora
        report.failed.extend(
            f"diffusers_exactness.{name}" for name, same in found.items() if not same
        )
        return found

    if plan.begins("ours"):
        report.part("ours", lambda: made(Ours))
    if held:
        report.part("ours", lambda: held[0].rows(paths, size.runs))
        report.part("ours_exactness", exact)
        report.part("own_kernels", lambda: own_kernels.rows(held[0], size.runs))
        if report.rows["own_kernels"].get("same_bits") is False:
            report.failed.append("own_kernels.same_bits")
        report.part("fp8_parts", lambda: eight_bits.parts(held[0], paths, size.runs))
    held.clear()
    release()
    if plan.begins("diffusers"):
        report.part("diffusers", lambda: made(Theirs))
    if held:
        cycles = min(size.runs, 3)
        report.part("diffusers_exactness", equal)
        report.part("diffusers", lambda: held[0].fused(files, cycles))
        report.part(
            "diffusers_hotswap",
            lambda: held[0].hotswapped(files, cycles, compiled=not size.small),
        )
    held.clear()
    release()


def _features(report: Report, size: Size) -> Rows:
    ours = Ours(size.model, size.device, size.side, size.steps)
    found = features.rows(ours, small=size.small)
    report.failed.extend(f"features.{name}" for name in found.get("failed", []))
    return found


def main() -> int:
    """Check everything; see the module's text."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="the small model, a dry run")
    parser.add_argument("--requests", type=int, default=200, help="in random order")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="of the whole run; 0: all that it needs"
    )
    parser.add_argument("--folder", type=Path, help="of the model: made unless it is there, kept")
    parser.add_argument("--only", type=sections, help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, help="also write the last line there")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"ok": False, "error": "no CUDA device here: --small --device cpu"}))
        return 2
    about = measured_on(options.device)
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-", dir=room(options.small)))

    def line(report: Report, leave_out: Collection[str] = ()) -> str:
        # What was aimed at last: whoever reads the end of an output has it.
        return json.dumps({
            "benchmark": "gpu_check", **about, "small": options.small,
            "seconds": round(report.seconds, 1),
            "rows": {name: row for name, row in report.rows.items() if name not in leave_out},
            "left_out": report.left_out, "aims": {} if options.small else report.aims(),
            "failed": report.failed, "ok": not report.failed,
        })  # fmt: skip

    def keep(report: Report) -> None:
        if options.json:
            options.json.write_text(line(report) + "\n")

    def end() -> None:
        # Whatever becomes of the file.
        with suppress(OSError):
            keep(report)
        print(line(report, _DETAILS), flush=True)

    def last_words(why: str) -> None:
        report.fail("run", RuntimeError(why))
        end()

    report = Report(keep)
    try:
        with ended_in_time(options.seconds, last_words, folder):
            # A section like the others: whatever goes wrong between them is a row.
            report.part("run", lambda: run(report, options, folder))
    except (Stopped, KeyboardInterrupt):
        pass  # a row says so
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    end()
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
