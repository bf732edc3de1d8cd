"""The swap's benchmark on a small model: every case on both sides, and its claim of no change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CASES = {"cold", "cached", "switch", "three", "text"} | {f"rank_{r}" for r in (8, 16, 64, 128)}


@pytest.mark.slow
@pytest.mark.long
def test_every_case_is_measured_on_both_sides(tmp_path: Path) -> None:
    files = {"--json": tmp_path / "result.json", "--plot": tmp_path / "plot.png"}
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.bench_lora_swap",
            "--tiny", "--runs", "1", "--peer-runs", "1",
            *(str(part) for pair in files.items() for part in pair),
        ],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(files["--json"].read_text()) == result
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")
    assert set(result["cases"]) == CASES
    for case in result["cases"].values():
        assert min(case["ours_s"], case["peer_s"], case["memcpy_s"]) > 0
        assert case["ratio"] == pytest.approx(case["peer_s"] / case["ours_s"], rel=1e-2)
    assert result["cases"]["text"]["modules"] > result["modules"]
    assert result["changed_weights"] == 0
    # The control: the same comparison finds what the other side leaves behind.
    assert result["peer_changed_fraction"] > 0.01
