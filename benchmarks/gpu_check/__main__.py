"""Everything that only a GPU can show, on a bare machine, offline; the last line is JSON.

    python -m benchmarks.gpu_check [--json FILE] [--requests N] [--seconds S]
    python -m benchmarks.gpu_check --only http,ours         some sections again
    python -m benchmarks.gpu_check --small --device cpu     the same code on the small model

Where nothing of this project is installed: PYTHONPATH=contract/src:worker/src before it.

In this order: a random model of full size, drawn on the GPU and kept in memory; the worker's start
between two of diffusers', each a process of its own; a cached LoRA's request, alone and while four
others are fetched; requests over HTTP in random order, each picture against its own first one, and
beside them the tests marked `gpu` and what diffusers compiles; the parts, ours and diffusers', in
one process; 8 bits' pictures. Then, as far as there is time: HTTP again with what compiles for
minutes, other ways to draw, files fetched beside another client. A part that fails is a row that
says so, and the others go on; `--json` is written anew after each. When `--seconds` are over, or it
is asked to end, it says what it has.

Exit status: 0 if nothing failed; the aims of speed are reported, not enforced.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size import SMALL
from benchmarks.gpu_check import eight_bits, features, fetching, own_kernels
from benchmarks.gpu_check.inputs import LoraFiles, room, write_inputs
from benchmarks.gpu_check.over_http import Pictures, Size, Worker
from benchmarks.gpu_check.plan import SECONDS, SECTIONS, Plan, Stopped, ended_in_time, sections
from benchmarks.gpu_check.processes import (
    COMPILED_START_S,
    Hotswap,
    bytecode,
    gpu_tests,
    peer_start,
)
from benchmarks.gpu_check.report import Report, measured_on
from benchmarks.gpu_check.speeds import Ours, Rows, Theirs, release
from sdxl_worker.loading.imports import share_the_interpreter

# Rows that are no aim's: in the file and the output above, not in the last line.
_DETAILS = ("own_kernels", "fp8_parts", "features", "fetch")
# Free on the card, for tests and diffusers beside a worker.
_BESIDE_BYTES = 40 << 30
# Of diffusers' hotswap where it was not begun beside anything: importing, compiling, drawing.
_HOTSWAP_S = 100


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
        with bytecode():
            made.append(write_inputs(folder, model, options.device, 4 if small else 32))
        return {"made_s": round(time.perf_counter() - started, 1)}

    def served(worker: Worker) -> None:
        report.part(f"{worker.name}_run", partial(worker.served, report, made[0], size, pictures))

    # As the worker does, before it is timed; for diffusers as well.
    share_the_interpreter()
    if plan.needs_model:
        report.part("model", make)
    with ExitStack() as stack:
        # Begun where there is something to compile beside, or where it is timed.
        begun: list[Hotswap] = []

        def begin() -> Hotswap:
            if not begun:
                begun.append(stack.enter_context(Hotswap(
                    model, made[0], size.device, size.side, size.steps, compiled=not small
                )))  # fmt: skip
            return begun[0]

        if made:
            with _starts(report, plan, size):
                requests = options.requests if plan.begins("http") else 0
                if requests or "start" in report.rows:
                    served(Worker(
                        "http", requests, folder / "http.log",
                        meanwhile=partial(_beside, report, plan, begin),
                    ))  # fmt: skip
            _in_one_process(report, plan, made[0], pictures, size)
        row = "compared.hotswap_cycle_times_ours"
        if "diffusers" in report.rows and (begun or plan.has_time(_HOTSWAP_S, row, "diffusers")):
            report.part("diffusers_hotswap", lambda: begin().timed())
    if "tests" not in report.rows and plan.begins("tests"):
        _tests(report)
    if plan.begins("fp8_quality"):
        report.part("fp8_quality", lambda: eight_bits.quality(options.device, 4 if small else 100))
    for name in ("compiled", "fp8"):
        if made and plan.begins(name):
            served(Worker(
                name, max(options.requests // 4, 1), folder / f"{name}.log", COMPILED_START_S,
                {"DRAW_SPEED": name},
            ))  # fmt: skip
    if pictures.http_lora and "fp8" in report.rows:
        drawn = report.rows["fp8"].get("speed")
        report.part("fp8", lambda: pictures.fp8_apart(drawn))
    if made and plan.begins("features"):
        _features(report, made[0], size)
    if plan.begins("fetch"):
        report.part("fetch", lambda: fetching.rows((8 if small else 170) * 10**6, size.runs))


@contextmanager
def _starts(report: Report, plan: Plan, size: Size) -> Iterator[None]:
    """Diffusers' start before and after the worker's, which the block does: the first process of
    all meets memory that nobody has used yet. To a first picture after it alone."""
    if not plan.begins("start"):
        yield
        return
    theirs: list[dict[str, float]] = []

    def start(steps: int) -> Rows:
        theirs.append(peer_start(size.model, size.device, size.side, steps))
        found: Rows = {
            "diffusers_s": round(min(one["ready"] for one in theirs), 2),
            "diffusers_s_all": [round(one["ready"], 2) for one in theirs],
        }
        return found | (
            {"diffusers_first_picture_s": round(theirs[-1]["drawn"], 2)} if steps else {}
        )

    report.part("start", lambda: start(0))
    yield
    ours = report.rows.get("http_start", {})
    report.rows["start"] |= {
        "ours_s": ours.get("ready_s"), "ours_first_picture_s": ours.get("first_picture_s")
    }  # fmt: skip
    report.part("start", lambda: start(size.steps))


def _tests(report: Report) -> None:
    with gpu_tests() as end:
        report.part("tests", end)


@contextmanager
def _beside(report: Report, plan: Plan, begin: Callable[[], Hotswap]) -> Iterator[None]:
    """Beside the block, where the card has room for all: the tests marked `gpu`, and what diffusers
    compiles before it is timed."""
    if not plan.wanted & {"tests", "diffusers"} or not _has_room():
        yield
        return
    hotswap = begin() if "diffusers" in plan.wanted else None
    if plan.begins("tests"):
        with gpu_tests() as end:
            yield
            report.part("tests", end)
    else:
        yield
    if hotswap is not None:
        hotswap.wait_until_compiled()


def _has_room() -> bool:
    return torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > _BESIDE_BYTES


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

    def drawn() -> None:
        # What diffusers' are compared with, whatever becomes of the rest.
        held[0].ready.patcher.restore()
        pictures.ours, pictures.ours_lora = held[0].draw(), held[0].draw_with(paths[0])

    def exact() -> None:
        found = report.rows["ours_exactness"]
        try:
            held[0].exact([held[0].parse(path) for path in few], found)
        finally:
            wrong = [name for name, value in found.items() if value is not True]
            report.failed.extend(f"ours_exactness.{name}" for name in wrong)

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
        report.part("ours", lambda: held[0].rows(paths, size.runs, report.rows["ours"]))
        report.part("ours", drawn)
        report.part("ours_exactness", exact)
    held.clear()
    release()
    if plan.begins("diffusers"):
        report.part("diffusers", lambda: made(Theirs))
    if held:
        cycles = min(size.runs, 2)
        report.part("diffusers_exactness", equal)
        report.part("diffusers", lambda: held[0].fused(files, cycles))
    held.clear()
    release()


def _features(report: Report, files: LoraFiles, size: Size) -> None:
    """What else is good to know, of a model of its own: after an error of the device itself nothing
    else would work."""
    held: list[Ours] = []
    paths = [files.folder / one for one in files.names[:2]]

    def rows() -> Rows:
        held.append(Ours(size.model, size.device, size.side, size.steps))
        found = features.rows(held[0], small=size.small)
        report.failed.extend(f"features.{name}" for name in found.get("failed", []))
        return found

    report.part("features", rows)
    if held:
        report.part("own_kernels", lambda: own_kernels.rows(held[0], size.runs))
        if report.rows["own_kernels"].get("same_bits") is False:
            report.failed.append("own_kernels.same_bits")
        report.part("fp8_parts", lambda: eight_bits.parts(held[0], paths, size.runs))


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
    if options.requests < 1:
        parser.error("--requests must be 1 or more")
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
        }, default=str)  # fmt: skip

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
    code = main()
    sys.stdout.flush()
    # Those who compile for torch would be waited for, up to five minutes.
    os._exit(code)
