"""What the check runs as processes of their own: the tests marked `gpu`, and diffusers' start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.full_size import REPOSITORY
from benchmarks.gpu_check.service import IMPORTED_FROM
from benchmarks.gpu_check.speeds import Rows

_TESTS = ("worker/tests", "benchmarks/tests")
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
    paths = os.pathsep.join(filter(None, [*IMPORTED_FROM, os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {
        "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "",
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


def peer_start(folder: Path, device: str) -> Rows:
    """Seconds of diffusers from a process's start to a pipeline on the device."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _PEER_START, str(folder), device]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return {"diffusers_start_s": round(time.perf_counter() - started, 2)}
