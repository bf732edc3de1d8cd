"""What the check runs as processes of their own: the tests marked `gpu`, and diffusers' start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.full_size import REPOSITORY
from benchmarks.gpu_check.exactness import PROMPT
from benchmarks.gpu_check.service import environment_of_a_child, service
from benchmarks.gpu_check.speeds import Rows

_TESTS = ("worker/tests", "benchmarks/tests")
_PEER_START = """
import sys, time
import diffusers, torch
dtype = torch.bfloat16 if sys.argv[2] == "cuda" else torch.float32
cls = diffusers.StableDiffusionXLPipeline
try:
    pipe = cls.from_pretrained(sys.argv[1], variant="fp16", dtype=dtype, add_watermarker=False)
except (OSError, ValueError):
    pipe = cls.from_pretrained(sys.argv[1], dtype=dtype, add_watermarker=False)
pipe.to(sys.argv[2])
if sys.argv[2] == "cuda":
    torch.cuda.synchronize()
# The system's clock, the same in all processes.
print("ready", time.perf_counter(), flush=True)
side, steps = int(sys.argv[3]), int(sys.argv[4])
pipe("x", width=side, height=side, num_inference_steps=steps)
print("drawn", time.perf_counter(), flush=True)
"""
# All that the worker's process imports.
_IMPORTS = """
import sdxl_worker.serve
from sdxl_worker.loading.imports import import_libraries
import_libraries()
import sdxl_worker.api, sdxl_worker.engine, sdxl_worker.loading.pipeline
"""


def gpu_tests() -> Rows:
    """The tests marked `gpu`, each a promise that no CPU can show.

    By pytest alone, whatever its version and plugins here: the project's own settings ask for some.
    """
    files = [
        str(path) for room in _TESTS for path in sorted((REPOSITORY / room).rglob("test_*.py"))
        if re.search(r"^ *@?pytest\.mark\.gpu", path.read_text(), re.MULTILINE)
    ]  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
               "-p", "no:warnings", "--tb=short",
               "-c", os.devnull, "--rootdir", str(REPOSITORY), "--import-mode=importlib",
               *files]  # fmt: skip
    environment = environment_of_a_child() | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "",
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode or "passed" not in last:
        # What failed, and how it began: a row has no place for all of it.
        print(done.stdout + done.stderr, flush=True)
        told = re.findall(r"^(?:E  |FAILED|ERROR).*", done.stdout, re.MULTILINE)
        raise RuntimeError("\n".join([*told[:12], last]) if told else done.stderr[-1200:])
    return {"ok": True, "summary": last}


def bytecode() -> subprocess.Popen[bytes]:
    """A process that imports what the worker does: where libraries came without bytecode, its first
    start would make it, as installing does. The peer's are imported by this process."""
    return subprocess.Popen([sys.executable, "-c", _IMPORTS], env=environment_of_a_child())


def _peer_start(folder: Path, device: str, side: int, steps: int) -> dict[str, float]:
    """Seconds of diffusers from a process's start to a pipeline on the device, and to its first
    picture."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _PEER_START, str(folder), device, str(side), str(steps)]
    done = subprocess.run(
        command, env=environment_of_a_child(), check=False, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    told = dict(re.findall(r"^(ready|drawn) ([\d.]+)$", done.stdout, re.MULTILINE))
    if done.returncode:
        raise RuntimeError(done.stderr[-1200:])
    return {name: float(at) - started for name, at in told.items()}


def starts(
    folder: Path, device: str, side: int, steps: int, log: Path, before: float | None
) -> Rows:
    """Processes from their start to ready, and to their first picture: ours between theirs, each
    twice, since the first one of all meets memory that nobody has used yet.

    Args:
        before: seconds of ours that were measured already.
    """
    body = {"prompt": PROMPT, "width": side, "height": side, "steps": steps, "timeout": 280}
    theirs = [_peer_start(folder, device, side, steps)]
    with service(folder, device, log) as worker:
        ours = [one for one in (before, worker.start_s) if one is not None]
        picture = worker.call(body)
    if picture["http"] != 200:
        raise RuntimeError(str(picture)[:300])
    theirs.append(_peer_start(folder, device, side, steps))
    return {
        "ours_s": round(min(ours), 2), "ours_s_all": [round(one, 2) for one in ours],
        "ours_first_picture_s": round(worker.start_s + picture["wall_s"], 2),
        "diffusers_s": round(min(one["ready"] for one in theirs), 2),
        "diffusers_s_all": [round(one["ready"], 2) for one in theirs],
        "diffusers_first_picture_s": round(min(one["drawn"] for one in theirs), 2),
    }  # fmt: skip
