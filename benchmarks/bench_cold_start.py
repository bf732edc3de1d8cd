"""How long from the start of a process to a loaded SDXL, by the worker's loader and by diffusers?

Each run is a process of its own on the same folder, whose files are in the page cache; runs of the
kinds take turns, and each figure is the median of its kind:
  ours    as a worker on a CPU starts: map the weights, import, load
  copied  as it starts for a GPU or a snapshot: the same, but weights read into memory of its own
  peer    import, then plain `StableDiffusionXLPipeline.from_pretrained`
  load    the loader of `ours` with nothing beside it: import first, then load
  read    the same files into fresh memory by one thread for each core, without torch: the floor
  fork    what a snapshot would save: a process that has loaded as `copied` forks, and the child
          looks at every weight; no disk and no memory of another machine, so a lower bound
diffusers maps its files, too: it returns before it has read a byte. So more ends are taken:
`…_touched_s`, when each page of the weights has been looked at; `peer_own_s`, when each weight is
in memory of its own, to compare with `copied_s`; and `serving_s`, when our LoRA patcher has its
pristine copy and the rest of the worker is imported, for which diffusers has no counterpart.
`--cold` adds runs whose files are dropped from the page cache before each. The first round also
compares the weights of both sides; a difference is an error.

    python -m benchmarks.bench_cold_start [--small | --folder DIR] [--cold] [--runs N]
                                         [--json FILE]

The folder is one of SDXL's full size with random 16-bit weights, made once (7 GB) under
SDXL_BENCH_CACHE, by default ~/.cache/modal-sdxl-lora; `--small` takes demo_model/sdxl-demo and
`--folder` any other. The first needs 16 GB of memory, files in the page cache included. Last line:
JSON. Times are seconds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.full_size import PARTS, SMALL, Problem, full_size_folder, weight_files

CHUNK_BYTES = 32 * 2**20
PAGE_BYTES = mmap.PAGESIZE


# --- what one process does --------------------------------------------------------------------


def run_ours(folder: Path, *, mapped: bool = True) -> tuple[dict[str, float], Any]:
    """The worker's start, in the order of `sdxl_worker.serve`."""
    from sdxl_worker.loading.weight_reader import start_reading

    reading = start_reading(folder, half=True, mapped=mapped)
    imported = _import_loader()
    model = _load(folder, reading)
    marks = {"imported": imported, "ready": time.monotonic()}
    # What a start does before it answers, beside loading: no part of what diffusers is timed for.
    from sdxl_worker import api, engine
    from sdxl_worker.lora import LoraPatcher, lora_targets

    del api, engine
    pipe = model.pipe
    targets = lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    patcher = LoraPatcher(targets, fingerprint_later=True, kept=model.mapped)
    marks["serving"] = time.monotonic()
    del patcher
    _touch(pipe)
    marks["touched"] = time.monotonic()
    return marks, pipe


def run_copied(folder: Path) -> tuple[dict[str, float], Any]:
    """The same with weights in memory of their own, as they go on to a GPU or into a snapshot."""
    return run_ours(folder, mapped=False)


def run_load(folder: Path) -> tuple[dict[str, float], Any]:
    """The worker's loader after all imports."""
    from sdxl_worker.loading.weight_reader import start_reading

    imported = _import_loader()
    pipe = _load(folder, start_reading(folder, half=True, mapped=True)).pipe
    return {"imported": imported, "ready": time.monotonic()}, pipe


def run_fork(folder: Path) -> dict[str, float]:
    """A loaded process doubles itself; the child looks at each weight and says when it was done."""
    import torch

    # A child has none of its parent's threads, and torch would wait for them.
    torch.set_num_threads(1)
    from sdxl_worker.loading.weight_reader import start_reading

    pipe = _load(folder, start_reading(folder, half=True, mapped=False)).pipe
    receive, send = os.pipe()
    begun = time.monotonic()
    if os.fork() == 0:
        there = time.monotonic()
        total = sum(float(tensor[0]) for _, tensor in _weights(pipe))
        marks = {"begun": begun, "there": there, "ready": time.monotonic(), "total": total}
        os.write(send, json.dumps(marks).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as answer:
        marks = json.loads(answer.read())
    os.wait()
    return {name: marks[name] for name in ("begun", "there", "ready")}


def _import_loader() -> float:
    from sdxl_worker.loading.imports import import_libraries

    import_libraries()
    import sdxl_worker.loading.pipeline  # noqa: F401

    return time.monotonic()


def _load(folder: Path, reading: Any) -> Any:
    from structlog.testing import capture_logs

    from sdxl_worker.loading.pipeline import load_model
    from sdxl_worker.settings import DrawSpeed, Dtype, Settings

    if reading is None:
        raise Problem("the folder is not one that the worker's own loader reads")
    settings = Settings(
        base_model=str(folder), device="cpu", dtype=Dtype.FLOAT16, vae_model=None,
        channels_last=None, draw_speed=DrawSpeed.EXACT,
    )  # fmt: skip
    with capture_logs() as lines:
        model = load_model(settings, reading)
    if any(line["event"] == "folder_needs_the_slow_loader" for line in lines):
        raise Problem("the worker went back to the loader of diffusers: nothing to compare")
    return model


def run_peer(folder: Path) -> tuple[dict[str, float], Any]:
    """diffusers as its documentation shows it."""
    import diffusers
    import torch
    import transformers

    _ = transformers.CLIPTextModelWithProjection
    cls: Any = diffusers.StableDiffusionXLPipeline
    imported = time.monotonic()
    pipe = cls.from_pretrained(
        str(folder), dtype=torch.float16, use_safetensors=True, add_watermarker=False
    )
    marks = {"imported": imported, "ready": time.monotonic()}
    _touch(pipe)
    marks["touched"] = time.monotonic()
    for part in PARTS:
        for parameter in getattr(pipe, part).parameters():
            parameter.data = parameter.data.clone()
    return marks | {"own": time.monotonic()}, pipe


def run_read(folder: Path) -> dict[str, float]:
    """All bytes of the weight files, copied once out of the page cache."""
    files = weight_files(folder)
    begun = time.monotonic()
    memories, jobs = [], []
    with ThreadPoolExecutor(cores()) as pool:
        for path in files:
            size = path.stat().st_size
            memory = mmap.mmap(-1, size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            memories.append(memory)
            for place in range(0, size, CHUNK_BYTES):
                part = memoryview(memory)[place : place + CHUNK_BYTES]
                jobs.append(pool.submit(_read_part, path, part, place))
    for job in jobs:
        job.result()
    return {"begun": begun, "ready": time.monotonic()}


def _read_part(path: Path, part: memoryview, place: int) -> None:
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < len(part):
            done += os.preadv(file.fileno(), [part[done:]], place + done)


def _weights(pipe: Any) -> list[tuple[str, Any]]:
    """Every parameter as a flat array of its bytes, by name."""
    import torch

    return [
        (f"{part}.{name}", tensor.detach().contiguous().view(-1).view(torch.uint8))
        for part in PARTS
        for name, tensor in getattr(pipe, part).named_parameters()
    ]


def _touch(pipe: Any) -> None:
    """Look at each page of the weights."""
    for _, tensor in _weights(pipe):
        tensor[::PAGE_BYTES].sum()


def _checksum(pipe: Any) -> str:
    total = 0
    for name, tensor in sorted(_weights(pipe)):
        total = zlib.crc32(tensor.numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def child(kind: str, folder: Path, check: bool) -> dict[str, Any]:
    """One measured process: points in time of the clock that all processes share."""
    if kind in ("read", "fork"):
        return run_read(folder) if kind == "read" else run_fork(folder)
    runs = {"ours": run_ours, "copied": run_copied, "peer": run_peer, "load": run_load}
    marks, pipe = runs[kind](folder)
    return marks | ({"checksum": _checksum(pipe)} if check else {})


# --- the comparison ---------------------------------------------------------------------------


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(kind: str, folder: Path, check: bool = False) -> dict[str, Any]:
    """Run one process; its points in time, counted from just before its start.

    Raises:
        Problem: it failed.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_cold_start",
        "--child",
        kind,
        "--folder",
        str(folder),
    ]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, *(["--check"] if check else [])],
        check=False,
        capture_output=True,
        text=True,
        # Threads that spin while they wait make a busy machine slower for both sides.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Problem(f"{kind}: {last}")
    marks: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {
        name: value - begun if isinstance(value, float) else value for name, value in marks.items()
    }


def drop_from_page_cache(folder: Path) -> None:
    """So that the next to read the weights has to go to the disk.

    Raises:
        Problem: the system offers no way to do that.
    """
    if not hasattr(os, "posix_fadvise"):
        raise Problem("--cold needs Linux: files cannot be dropped from the page cache here")
    for path in weight_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, runs: int, cold: bool) -> dict[str, Any]:
    """All runs, and their medians."""
    nbytes = sum(path.stat().st_size for path in weight_files(folder))
    # Weights and libraries into the page cache: else the first measured one pays for all.
    start("load", folder)
    kinds = ["ours", "peer", "copied", "load", "read", "fork"]
    if cold:
        kinds += ["ours_cold", "peer_cold", "copied_cold", "read_cold"]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    loads = [os.getloadavg()[0]]
    for number in range(runs):
        for kind, results in found.items():
            if kind.endswith("_cold"):
                drop_from_page_cache(folder)
            check = number == 0 and kind in ("ours", "copied", "peer")
            results.append(start(kind.removesuffix("_cold"), folder, check))
        loads.append(os.getloadavg()[0])
        seconds = ", ".join(f"{kind} {got[-1]['ready']:.2f}" for kind, got in found.items())
        print(f"round {number + 1} of {runs}: {seconds}", flush=True)
    if len({found[kind][0]["checksum"] for kind in ("ours", "copied", "peer")}) > 1:
        raise Problem("the weights differ from those that diffusers loads")

    def median(kind: str, until: str, since: str | None = None) -> float:
        seconds: list[float] = [
            run[until] - (run[since] if since is not None else 0.0) for run in found[kind]
        ]
        return statistics.median(seconds)

    ours, peer = median("ours", "ready"), median("peer", "ready")
    load, read = median("load", "ready", "imported"), median("read", "ready", "begun")
    result = {
        "ours_s": ours,
        "peer_s": peer,
        "import_s": median("load", "imported"),
        "peer_import_s": median("peer", "imported"),
        "load_s": load,
        "read_s": read,
        "ours_over_peer": ours / peer,
        "load_over_read": load / read,
        "import_over_peer": median("load", "imported") / median("peer", "imported"),
        "ours_touched_s": median("ours", "touched"),
        "serving_s": median("ours", "serving"),
        "peer_load_s": median("peer", "ready", "imported"),
        "peer_touched_s": median("peer", "touched"),
        "copied_s": median("copied", "ready"),
        "copied_imported_s": median("copied", "imported"),
        "copied_serving_s": median("copied", "serving"),
        "peer_own_s": median("peer", "own"),
        "copied_over_peer_own": median("copied", "ready") / median("peer", "own"),
        "fork_s": median("fork", "ready", "begun"),
        "fork_itself_s": median("fork", "there", "begun"),
        "same_weights": True,
        "gb": nbytes / 1e9,
        "runs": runs,
        **{f"{k}_runs_s": [run["ready"] for run in found[k]] for k in ("ours", "peer", "copied")},
        "load_runs_s": [run["ready"] - run["imported"] for run in found["load"]],
        "read_runs_s": [run["ready"] - run["begun"] for run in found["read"]],
        "load_average": max(loads),
        "cores": cores(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "hardware": _cpu(),
    }
    if cold:
        result |= {
            "ours_cold_s": median("ours_cold", "ready"),
            "ours_cold_touched_s": median("ours_cold", "touched"),
            "copied_cold_s": median("copied_cold", "ready"),
            "peer_cold_s": median("peer_cold", "ready"),
            "peer_cold_touched_s": median("peer_cold", "touched"),
            "peer_cold_own_s": median("peer_cold", "own"),
            "read_cold_s": median("read_cold", "ready", "begun"),
        }
    return {name: _rounded(value) for name, value in result.items()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next(
        (ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "unknown"
    )


def _rounded(value: Any) -> Any:
    """Four digits are all that a time here means."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> int:
    """Run as the arguments say; 1 and one line on stderr where nothing can be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the small model of demo_model")
    parser.add_argument("--folder", type=Path, help="a diffusers SDXL folder of one's own")
    parser.add_argument("--cold", action="store_true", help="also with the files on disk only")
    parser.add_argument("--runs", type=int, default=5, help="of each kind (default 5)")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be 1 or more")
    if args.child:
        os.environ |= {
            "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        warnings.filterwarnings("ignore")
    try:
        if args.child:
            print(json.dumps(child(args.child, args.folder, args.check)))
            return 0
        folder = args.folder or (SMALL if args.small else full_size_folder())
        result = measure(folder, args.runs, args.cold)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
