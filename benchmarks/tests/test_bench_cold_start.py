"""The start's benchmark on the small model: its figures, and its refusal of broken folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SMALL = Path(__file__).parents[2] / "demo_model" / "sdxl-demo"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_cold_start", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.long
def test_the_last_line_has_every_figure(tmp_path: Path) -> None:
    done = bench("--small", "--runs", "1", "--json", str(tmp_path / "result.json"))

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "result.json").read_text()) == result
    seconds = ("ours_s", "peer_s", "import_s", "peer_import_s", "load_s", "read_s")
    assert all(0 < result[name] < 300 for name in seconds), result
    assert result["ours_over_peer"] == pytest.approx(result["ours_s"] / result["peer_s"], rel=1e-2)
    assert result["load_over_read"] == pytest.approx(result["load_s"] / result["read_s"], rel=1e-2)
    assert result["import_over_peer"] == pytest.approx(
        result["import_s"] / result["peer_import_s"], rel=1e-2
    )
    assert result["peer_import_s"] < result["peer_s"]
    assert result["ours_s"] < result["serving_s"] < result["ours_touched_s"]
    assert 0 < result["fork_itself_s"] < result["fork_s"] < result["copied_s"]
    assert result["peer_s"] < result["peer_touched_s"] < result["peer_own_s"]
    weights = sum(file.stat().st_size for file in SMALL.glob("*/*.safetensors"))
    assert result["gb"] == pytest.approx(weights / 1e9, rel=1e-3)
    assert result["same_weights"] is True
    assert result["cores"] >= 1
    assert result["torch"].startswith("2.")


@pytest.mark.parametrize("broken", ["missing", "cut", "other"])
@pytest.mark.long
def test_a_broken_folder_is_an_error_that_names_what_is_wrong(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SMALL, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    if broken == "missing":
        weights.unlink()
        message = "no weights for vae"
    elif broken == "cut":
        weights.write_bytes(weights.read_bytes()[:-2])
        message = "model could not be loaded"
    else:
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "OtherPipeline"))
        message = "not one that the worker's own loader reads"

    done = bench("--folder", str(folder), "--runs", "1")

    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    # Nothing that could be taken for a result.
    assert "ours_s" not in done.stdout
