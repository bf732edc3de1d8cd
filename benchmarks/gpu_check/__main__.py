"""Everything that only a GPU can show, on a bare machine, offline; the last line is JSON.

    python -m benchmarks.gpu_check [--json FILE] [--requests N] [--compiled] [--fp8]
    python -m benchmarks.gpu_check --only http,ours         some sections again
    python -m benchmarks.gpu_check --small --device cpu     the same code on the small model

Where nothing of this project is installed: PYTHONPATH=contract/src:worker/src before it.

In this order: the tests marked `gpu`; a LoRA's bytes fetched, beside another client; a random model
of full size, drawn on the GPU and kept in memory; the worker's start; a cached LoRA's request,
alone and while four others are fetched; requests over HTTP in random order, each picture against
its own first one; diffusers' start as a process of its own; the parts, ours and diffusers', in one
process. A part that fails is a row that says so, and the others go on; `--json` is written anew
after each.

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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.full_size import FULL_BYTES, SMALL
from benchmarks.gpu_check import eight_bits, exactness, features, fetching, own_kernels
from benchmarks.gpu_check.inputs import LoraFiles, module_shapes, write_loras, write_model
from benchmarks.gpu_check.processes import gpu_tests, peer_start
from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.service import (
    COMPILED_START_S,
    START_S,
    Service,
    fresh,
    lora_server,
    service,
)
from benchmarks.gpu_check.speeds import CFG, SCALE, SEED, Ours, Rows, Theirs, release
from sdxl_worker.settings import DrawSpeed

# What a run is made of, in its order; those of `_ASKED` by their own option alone.
SECTIONS = (
    "tests", "fetch", "http", "compiled", "fp8", "fp8_quality", "start", "ours", "diffusers",
)  # fmt: skip
_ASKED = ("compiled", "fp8")
# Of the place for model and LoRAs.
_ROOM_BYTES = FULL_BYTES + 3 * 10**9


def over_http(
    worker: Service, loras: list[Mapping[str, str]], side: int, steps: int, runs: int
) -> Rows:
    """A request with a cached LoRA by the worker's own clock; then while four are fetched."""
    body = {"prompt": exactness.PROMPT, "width": side, "height": side, "steps": steps,
            "seed": 7, "timeout": 280}  # fmt: skip

    def drawn(number: int, **fields: Any) -> dict[str, Any]:
        lora = dict(loras[number]) | {"scale": 0.8}
        found = worker.call(body | {"loras": [lora]} | fields)
        if found["http"] != 200:
            raise RuntimeError(str(found)[:300])
        return found

    cold = drawn(0)
    alone = [drawn(number % 2) for number in range(runs + 2)][2:]
    with ThreadPoolExecutor(4) as pool:
        # Files of the same size that no cache has seen.
        fetching = [
            pool.submit(worker.call, body | {"steps": 1, "loras": [
                fresh(loras[n % 2], n + 1) | {"scale": 0.1}]})
            for n in range(4)
        ]  # fmt: skip
        beside = drawn(1)
        others = [one.result() for one in fetching]
    wrong = [one for one in others if one["http"] != 200]
    if wrong:
        raise RuntimeError(str(wrong[0])[:300])
    clock = [one["generation_time_seconds"] * 1e3 for one in alone]
    denoise = statistics.median(one["timings"]["denoise"] for one in alone)
    fetched = sum(cold["timings"][phase] for phase in ("download", "parse", "apply"))
    return {
        "first_lora_ms": round(cold["generation_time_seconds"] * 1e3, 1),
        "first_lora_download_ms": round(cold["timings"]["download"] * 1e3, 1),
        "fetched_to_applied_ms": round(fetched * 1e3, 1),
        "cached_lora_ms": round(statistics.median(clock), 1),
        "cached_lora_ms_all": [round(one, 1) for one in clock],
        "denoise_ms": round(denoise * 1e3, 1),
        "slower_while_fetching": round(beside["timings"]["denoise"] / denoise, 3),
        "fetched_meanwhile": sum(one["timings"]["download"] > 0 for one in others),
        "timings": alone[-1]["timings"],
        "drawing": alone[-1].get("drawing"),
        "speed": (alone[-1].get("drawing") or {}).get("speed"),
    }


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
    device, small = options.device, options.small
    report.leave_out(_left_out(options))
    wanted = _wanted(options)
    model = SMALL if small else (options.folder or folder) / "model"
    side, steps = (64, 2) if small else (1024, 28)
    runs = 2 if small else 5
    pictures, made = Pictures(), list[LoraFiles]()
    if "tests" in wanted:
        report.part("tests", gpu_tests)
    if "fetch" in wanted:
        report.part("fetch", lambda: fetching.rows((8 if small else 170) * 10**6, runs))
    if wanted <= {"tests", "fetch"}:
        return

    def make() -> Rows:
        started = time.perf_counter()
        # Its last file: where it is, all of the model is.
        if not (model / "model_index.json").exists():
            model.mkdir(parents=True)
            write_model(model, device)
        made.append(write_loras(folder, module_shapes(model), 4 if small else 32))
        return {"made_s": round(time.perf_counter() - started, 1)}

    report.part("model", make)
    if not made:
        return
    files = made[0]
    paths = [files.folder / one for one in files.names]

    def served(name: str, start_s: float = START_S, **settings: str) -> Rows:
        started = time.perf_counter()
        log = folder / f"{name}.log"
        with service(model, device, log, start_s=start_s, **settings) as worker:
            report.part(f"{name}_start", lambda: _started(worker))
            with lora_server(files) as server:
                loras: list[Mapping[str, str]] = [server[one] for one in files.names]
                report.part(name, lambda: over_http(worker, loras, side, steps, runs))
                if name in ("http", "fp8"):
                    report.part(
                        name,
                        lambda: pictures.take(name, _http_picture(worker, loras[0], side, steps)),
                    )
                sides = (64, 96) if small else (512, 768, 1024)
                report.part(
                    f"{name}_exactness",
                    lambda: _exact(report, name, worker, loras, sides, options.requests),
                )
        return {"s": round(time.perf_counter() - started, 1)}

    if "http" in wanted:
        report.part("http_run", lambda: served("http"))
    if "compiled" in wanted:
        report.part(
            "compiled_run", lambda: served("compiled", COMPILED_START_S, DRAW_SPEED="compiled")
        )
    if "fp8" in wanted:
        report.part("fp8_run", lambda: served("fp8", COMPILED_START_S, DRAW_SPEED="fp8"))
        if "http" in wanted:
            drawn = report.rows.get("fp8", {})
            report.part("fp8", lambda: pictures.fp8_apart(drawn.get("speed")))
    if "fp8_quality" in wanted:
        report.part("fp8_quality", lambda: eight_bits.quality(device, 4 if small else 100))
    if "start" in wanted:
        report.part("start", lambda: peer_start(model, device))
    _in_one_process(report, files, paths, pictures, wanted, (model, device, side, steps, runs))
    report.part("compared", report.compare)


def _left_out(options: argparse.Namespace) -> dict[str, str]:
    """Section or row → why it is not there, of what this run does not do."""
    found: dict[str, str] = {}
    if options.device != "cuda":
        found["tests"] = "of a GPU alone"
    if options.small:
        found["start"] = found["compared.start_of_diffusers"] = "of the full-size model alone"
        found["compared.hotswap_cycle_times_ours"] = "compiles only the full-size model"
    for name in SECTIONS:
        if options.only and name not in options.only:
            found.setdefault(name, "not among --only")
        elif name in _ASKED and not options.only and not getattr(options, name):
            found[name] = f"asked for by --{name}"
    return found


def _sections(text: str) -> set[str]:
    found = set(text.split(","))
    if unknown := found - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: one of {SECTIONS}")
    return found


def _wanted(options: argparse.Namespace) -> set[str]:
    return set(SECTIONS) - _left_out(options).keys()


def _started(worker: Service) -> Rows:
    told = ("draw_speed", "speeds_unavailable")
    return {"ready_s": round(worker.start_s, 2)} | {name: worker.health.get(name) for name in told}


def _http_picture(worker: Service, lora: Mapping[str, str], side: int, steps: int) -> bytes:
    found = worker.call({
        "prompt": exactness.PROMPT, "width": side, "height": side, "steps": steps, "seed": SEED,
        "cfg": CFG, "timeout": 280, "loras": [dict(lora) | {"scale": SCALE}],
    })  # fmt: skip
    return exactness.pixels_of(found)[0]


def _exact(
    report: Report,
    name: str,
    worker: Service,
    loras: list[Mapping[str, str]],
    sides: tuple[int, ...],
    requests: int,
) -> Rows:
    found = exactness.check(worker, exactness.cases(loras, sides), requests)
    if not found.ok:
        report.failed.append(f"{name}_exactness")
    return {"ok": found.ok, "requests": found.requests, "cases": found.cases,
            "cancelled": found.cancelled, "differing": found.differing,
            "unclean": found.unclean, "errors": dict(found.errors),
            "steps": dict(found.steps)}  # fmt: skip


def _in_one_process(
    report: Report,
    files: LoraFiles,
    paths: list[Path],
    pictures: Pictures,
    wanted: set[str],
    size: tuple[Path, str, int, int, int],
) -> None:
    """Our parts, then diffusers'; each model is gone before the next one comes."""
    model, device, side, steps, runs = size
    few = paths[: 2 if model == SMALL else 5]
    held: list[Any] = []

    def made(make: Callable[..., Any]) -> Rows:
        started = time.perf_counter()
        held[:] = [make(model, device, side, steps)]
        return {"made_s": round(time.perf_counter() - started, 1)}

    def exact() -> Rows:
        found: Rows = held[0].exact([held[0].parse(path) for path in few])
        wrong = [name for name, value in found.items() if value is not True]
        report.failed.extend(f"ours.{name}" for name in wrong)
        pictures.ours, pictures.ours_lora = held[0].draw(), held[0].draw_with(paths[0])
        return found

    def equal() -> Rows:
        """Plain diffusers' pictures: of the base, and with the LoRA merged by the same rule."""
        merged = held[0].draw_merged(paths[0])
        found = {}
        if "ours" in wanted:
            found["base_picture_is_ours"] = held[0].draw() == pictures.ours
            found["lora_picture_is_ours"] = merged == pictures.ours_lora
        if "http" in wanted:
            found["lora_picture_is_the_one_over_http"] = merged == pictures.http_lora
        report.failed.extend(f"diffusers.{name}" for name, same in found.items() if not same)
        return found

    if "ours" in wanted:
        report.part("ours", lambda: made(Ours))
    if held:
        report.part("ours_exactness", exact)
        report.part("ours", lambda: held[0].rows(paths, runs))
        report.part("own_kernels", lambda: own_kernels.rows(held[0], runs))
        if report.rows["own_kernels"].get("same_bits") is False:
            report.failed.append("own_kernels.same_bits")
        report.part("features", lambda: _features(report, held[0], small=model == SMALL))
        report.part("fp8_parts", lambda: eight_bits.parts(held[0], paths, runs))
    held.clear()
    release()
    if "diffusers" in wanted:
        report.part("diffusers", lambda: made(Theirs))
    if held:
        report.part("diffusers_exactness", equal)
        report.part("diffusers", lambda: held[0].fused(files, runs))
        report.part(
            "diffusers_hotswap",
            lambda: held[0].hotswapped(files, runs, compiled=model != SMALL),
        )
    held.clear()


def _features(report: Report, ours: Ours, *, small: bool) -> Rows:
    found = features.rows(ours, small=small)
    report.failed.extend(f"features.{name}" for name in found.get("failed", []))
    return found


def _device(device: str) -> dict[str, Any]:
    """What it was measured on."""
    if device != "cuda":
        return {"device": device}
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
        "capability": f"{about.major}.{about.minor}", "memory_bytes": about.total_memory,
    }  # fmt: skip


def _room(small: bool) -> Path | None:
    """Memory, where the model belongs; elsewhere if it is too little, as in a container."""
    room = Path("/dev/shm")  # noqa: S108
    if small or not room.is_dir() or shutil.disk_usage(room).free < _ROOM_BYTES:
        return None
    return room


def main() -> int:
    """Check everything; see the module's text."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="the small model, a dry run")
    parser.add_argument("--requests", type=int, default=200, help="in random order")
    parser.add_argument("--compiled", action="store_true", help="DRAW_SPEED=compiled, too: minutes")
    parser.add_argument("--fp8", action="store_true", help="DRAW_SPEED=fp8, too: minutes")
    parser.add_argument("--folder", type=Path, help="of the model: made unless it is there, kept")
    parser.add_argument("--only", type=_sections, help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, help="also write the last line there")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"ok": False, "error": "no CUDA device here: --small --device cpu"}))
        return 2
    about = _device(options.device)

    def line(report: Report) -> str:
        return json.dumps({
            "benchmark": "gpu_check", "ok": not report.failed, **about,
            "torch": torch.__version__, "diffusers": diffusers.__version__,
            "small": options.small, "seconds": round(report.seconds, 1),
            "speeds": [speed.value for speed in DrawSpeed],
            "failed": report.failed, "left_out": report.left_out,
            "aims": {} if options.small else report.aims(),
            "rows": report.rows,
        })  # fmt: skip

    def keep(report: Report) -> None:
        if options.json:
            options.json.write_text(line(report) + "\n")

    folder = Path(tempfile.mkdtemp(prefix="gpu-check-", dir=_room(options.small)))
    report = Report(keep)
    try:
        # A section like the others: whatever goes wrong between them is a row.
        report.part("run", lambda: run(report, options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(line(report), flush=True)
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
