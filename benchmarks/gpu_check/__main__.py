"""Everything that only a GPU can show, on a bare machine, offline; the last line is JSON.

    python -m benchmarks.gpu_check [--json FILE] [--requests N] [--compiled]
    python -m benchmarks.gpu_check --small --device cpu     the same code on the small model

In this order: the tests marked `gpu`; a random model of full size, drawn on the GPU and kept in
memory; the worker's start; a cached LoRA's request, alone and while four others are fetched;
requests over HTTP in random order, each picture against its own first one; diffusers' start as a
process of its own; the parts, ours and diffusers', in one process. A part that fails is a row that
says so, and the others go on.

Exit status: 0 if everything exact was exact; the aims of speed are reported, not enforced.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size import REPOSITORY, SMALL
from benchmarks.gpu_check import exactness
from benchmarks.gpu_check.inputs import LoraFiles, write_loras, write_model
from benchmarks.gpu_check.service import Service, lora_server, service
from benchmarks.gpu_check.speeds import Ours, Rows, Theirs, release

# Row → at most; for an H100 or H200, 1024x1024, 28 steps, a rank-32 LoRA on 722 layers.
AIMS = {
    "http.cached_lora_ms": 1500, "http.slower_while_fetching": 1.05,
    "ours.switch_ms": 15, "ours.restore_with_proof_ms": 10, "ours.same_again_ms": 1,
    "ours.parse_to_applied_ms": 60, "ours.text_ms": 12, "ours.vae_ms": 60,
}  # fmt: skip
_PEER_START = """
import sys, time
started = time.perf_counter()
import diffusers, torch
dtype = torch.bfloat16 if sys.argv[2] == "cuda" else torch.float32
cls = diffusers.StableDiffusionXLPipeline
try:
    pipe = cls.from_pretrained(sys.argv[1], variant="fp16", dtype=dtype, add_watermarker=False)
except (OSError, ValueError):
    pipe = cls.from_pretrained(sys.argv[1], dtype=dtype, add_watermarker=False)
pipe.to(sys.argv[2])
"""


class Report:
    """Rows by section, printed as they come."""

    def __init__(self) -> None:
        self.rows: dict[str, Rows] = {}
        self.failed: list[str] = []
        self._started = time.perf_counter()

    def part(self, name: str, action: Callable[[], Mapping[str, Any]]) -> None:
        """Run one section; an error is a row, and no end."""
        try:
            found = dict(action())
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
            self.failed.append(name)
        self.rows.setdefault(name, {}).update(found)
        seconds = time.perf_counter() - self._started
        print(f"[{seconds:6.1f} s] {name}: {json.dumps(found)}", flush=True)
        release()

    def aims(self) -> dict[str, Any]:
        """Row → what was found, what was aimed at, and whether it was met."""
        found = {}
        for name, limit in AIMS.items():
            section, row = name.split(".")
            value = self.rows.get(section, {}).get(row)
            if value is not None:
                found[name] = {"found": value, "at_most": limit, "met": value <= limit}
        return found


def gpu_tests() -> Rows:
    """The tests marked `gpu`, each a promise that no CPU can show."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
               "worker/tests"]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    last = done.stdout.strip().splitlines()[-1:]
    if done.returncode:
        raise RuntimeError(done.stdout[-400:])
    return {"summary": last[0] if last else ""}


def peer_start(folder: Path, device: str) -> Rows:
    """Seconds of diffusers from a process's start to a pipeline on the device."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _PEER_START, str(folder), device]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return {"diffusers_start_s": round(time.perf_counter() - started, 2)}


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
        # Seen by no cache: the hash is left out, and the URL is another each time.
        fetching = [
            pool.submit(worker.call, body | {"steps": 1, "loras": [
                {"url": f"{loras[n % 2]['url']}?signature={n}", "scale": 0.1}]})
            for n in range(4)
        ]  # fmt: skip
        beside = drawn(1)
        for one in fetching:
            one.result()
    clock = [one["generation_time_seconds"] * 1e3 for one in alone]
    denoise = statistics.median(one["timings"]["denoise"] for one in alone)
    return {
        "first_lora_ms": round(cold["generation_time_seconds"] * 1e3, 1),
        "first_lora_download_ms": round(cold["timings"]["download"] * 1e3, 1),
        "cached_lora_ms": round(statistics.median(clock), 1),
        "cached_lora_ms_all": [round(one, 1) for one in clock],
        "denoise_ms": round(denoise * 1e3, 1),
        "slower_while_fetching": round(beside["timings"]["denoise"] / denoise, 3),
        "timings": alone[-1]["timings"],
        "drawing": alone[-1].get("drawing"),
        "speed": (alone[-1].get("drawing") or {}).get("speed"),
    }


def run(options: argparse.Namespace, folder: Path) -> Report:
    """All sections, in order."""
    report, device, small = Report(), options.device, options.small
    model = SMALL if small else folder / "model"
    side, steps = (64, 2) if small else (1024, 28)
    sides = (64, 96) if small else (512, 768, 1024)
    runs = 2 if small else 5
    files: list[LoraFiles] = []
    if device == "cuda":
        report.part("tests", gpu_tests)
    if not small:
        model.mkdir()
        started = time.perf_counter()
        write_model(model, device)
        report.rows["model"] = {"made_s": round(time.perf_counter() - started, 1)}
        release()

    def served(name: str, **settings: str) -> None:
        log = folder / f"{name}.log"
        with service(model, device, log, **settings) as worker:
            report.part(f"{name}_start", lambda: {"ready_s": round(worker.start_s, 2)})
            if not files:
                shapes = {k: tuple(v) for k, v in worker.health["signature"]["modules"].items()}
                files.append(write_loras(folder, shapes, 4 if small else 32))
            with lora_server(files[0]) as server:
                loras: list[Mapping[str, str]] = [server[one] for one in files[0].names]
                report.part(name, lambda: over_http(worker, loras, side, steps, runs))

                def exact() -> Rows:
                    found = exactness.check(worker, exactness.cases(loras, sides), options.requests)
                    rows = {"ok": found.ok, "requests": found.requests, "cases": found.cases,
                            "cancelled": found.cancelled, "differing": found.differing,
                            "unclean": found.unclean, "errors": dict(found.errors),
                            "steps": dict(found.steps)}  # fmt: skip
                    if not found.ok:
                        report.failed.append(f"{name}_exactness")
                    return rows

                report.part(f"{name}_exactness", exact)

    report.part("http_run", lambda: served("http") or {})  # type: ignore[func-returns-value]
    if options.compiled:
        report.part("compiled_run", lambda: served("compiled", DRAW_SPEED="compiled") or {})  # type: ignore[func-returns-value]
    if not small:
        report.part("start", lambda: peer_start(model, device))
    if not files:
        return report
    paths = [files[0].folder / one for one in files[0].names]
    base: list[bytes] = []

    def ours() -> Rows:
        worker = Ours(model, device, side, steps)
        found = worker.exact([worker.parse(path) for path in paths[: 2 if small else 5]])
        wrong = [name for name, value in found.items() if value is not True]
        report.failed.extend(f"ours.{name}" for name in wrong)
        base.append(worker.draw())
        return found | worker.rows(paths, runs)

    def theirs() -> Rows:
        peer = Theirs(model, device, side, steps)
        same = bool(base) and peer.draw() == base[0]
        if not same:
            report.failed.append("diffusers.base_picture_is_ours")
        rows = peer.rows(files[0], runs, compiled=not small)
        return {"base_picture_is_ours": same} | rows

    report.part("ours", ours)
    report.part("diffusers", theirs)
    return report


def main() -> int:
    """Check everything; see the module's text."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="the small model, a dry run")
    parser.add_argument("--requests", type=int, default=200, help="in random order")
    parser.add_argument("--compiled", action="store_true", help="DRAW_SPEED=compiled, too: minutes")
    parser.add_argument("--json", type=Path, help="also write the last line there")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"ok": False, "error": "no CUDA device here: --small --device cpu"}))
        return 2
    # Memory, where the model belongs.
    room = Path("/dev/shm")  # noqa: S108
    place = room if room.is_dir() and not options.small else None
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-", dir=place))
    started = time.perf_counter()
    try:
        report = run(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    cuda = options.device == "cuda"
    last = {
        "benchmark": "gpu_check",
        "ok": not report.failed,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "small": options.small,
        "seconds": round(time.perf_counter() - started, 1),
        "failed": report.failed,
        "aims": {} if options.small else report.aims(),
        "rows": report.rows,
    }
    line = json.dumps(last)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
