"""What a signed manifest costs: milliseconds and bytes a picture, against writing the same PNG.

The last line is JSON: the median of signing, of writing the picture with Pillow in the same run,
their ratio, and the bytes that a manifest adds; the same with the manifest of the picture that it
was drawn from (`edit_`). Medians are of the thread's own CPU time, which other programs on the
machine change less; the `_wall_ms` beside them are what the clock said. `beside_busy_` are the
clock's beside a thread that computes without a pause, as a busy event loop does: with the turns
that the server's threads take at the interpreter's lock, and with Python's own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from app.core.pools import take_short_turns
from app.services.marking.keys import development_identity
from app.services.marking.marker import Facts, Marker, Source

_KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_RECEIPT = {
    "prompt": "a lighthouse at dusk, photograph, " * 12,
    "seed": 7,
    "loras": [{"name": "style", "sha256": "0" * 64, "scale": 0.8}] * 2,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="of the pictures, px")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    noise = np.random.default_rng(1).normal(0, 12, (options.side, options.side, 3))
    slope = np.linspace(0, 220, options.side)[:, None, None]
    picture = Image.fromarray(np.clip(noise + slope, 0, 255).astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        marker = Marker(development_identity(Path(folder) / "keys"), "benchmark")
        results = {kind: _measure(picture, kind, marker, options.runs) for kind in _KINDS}
    line = json.dumps({"side": options.side, "runs": options.runs, "kinds": results})
    if options.json is not None:
        options.json.write_text(line + "\n")
    print(line)
    return 0


def _measure(picture: Image.Image, kind: str, marker: Marker, runs: int) -> dict[str, float]:
    def write() -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, **({"compress_level": 1} if kind == "PNG" else {}))
        return file.getvalue()

    plain = write()
    facts = Facts(hashlib.sha256(plain).hexdigest(), _RECEIPT, "2026-01-01T00:00:00Z")
    signed = marker.mark(plain, _KINDS[kind], facts)
    source = Source("0" * 64, _KINDS[kind], signed)
    edited = marker.mark(plain, _KINDS[kind], facts, source)
    sign_ms, sign_wall = _median_ms(lambda: marker.mark(plain, _KINDS[kind], facts), runs)
    edit_ms, edit_wall = _median_ms(lambda: marker.mark(plain, _KINDS[kind], facts, source), runs)
    write_ms, _ = _median_ms(write, min(runs, 5))
    with _busy():
        usual_wall = _median_ms(lambda: marker.mark(plain, _KINDS[kind], facts), 3)[1]
        take_short_turns()
        busy_wall = _median_ms(lambda: marker.mark(plain, _KINDS[kind], facts), runs)[1]
    print(
        f"{kind}: sign {sign_ms:.1f} ms, an edit {edit_ms:.1f} ms, write {write_ms:.1f} ms; "
        f"beside a busy thread {busy_wall:.1f} ms, with Python's own turns {usual_wall:.1f} ms",
        flush=True,
    )
    return {
        "sign_ms": round(sign_ms, 3),
        "sign_wall_ms": round(sign_wall, 3),
        "write_ms": round(write_ms, 3),
        "sign_over_write": round(sign_ms / write_ms, 4),
        "added_bytes": len(signed) - len(plain),
        "edit_ms": round(edit_ms, 3),
        "edit_wall_ms": round(edit_wall, 3),
        "edit_added_bytes": len(edited) - len(plain),
        "beside_busy_wall_ms": round(busy_wall, 3),
        "beside_busy_usual_turns_wall_ms": round(usual_wall, 3),
    }


@contextmanager
def _busy() -> Iterator[None]:
    """A thread that computes, and afterwards the turns at the lock as they were."""
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            sum(range(100))

    before = sys.getswitchinterval()
    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        ended.set()
        thread.join()


def _median_ms(work: Callable[[], object], runs: int) -> tuple[float, float]:
    """By the thread's CPU time and by the clock."""
    used, passed = [], []
    for _ in range(runs):
        began, computed = time.perf_counter(), time.thread_time()
        work()
        used.append(time.thread_time() - computed)
        passed.append(time.perf_counter() - began)
    return 1000 * statistics.median(used), 1000 * statistics.median(passed)


if __name__ == "__main__":
    raise SystemExit(main())
