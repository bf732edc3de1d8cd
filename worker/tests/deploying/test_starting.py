"""A container's start from a volume: read once, and looked at again after a snapshot."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.result import HealthStatus
from sdxl_worker.deploying import starting
from sdxl_worker.deploying.settings import Deployment
from sdxl_worker.deploying.single_file import WeightsError
from sdxl_worker.deploying.starting import Weights, still_current
from sdxl_worker.deploying.volume import fill, read_manifest, verify
from sdxl_worker.drawing import speeds
from sdxl_worker.loading.weight_reader import start_reading
from sdxl_worker.settings import DrawSpeed, Dtype, Settings
from testkit.worker import MODEL

pytestmark = pytest.mark.process


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A filled volume with the small model."""
    fill(tmp_path, str(MODEL))
    return tmp_path / MODEL.name


def test_weights_are_read_once_and_what_was_read_is_what_is_hashed(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[str] = []
    real = hashlib.file_digest

    def watched(file: Any, algorithm: Any) -> Any:
        again.append(Path(file.name).name)
        return real(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    reading = start_reading(volume, half=True, hashed=True)
    assert reading is not None
    manifest = verify(volume.parent, volume.name, reading.sha256s())

    assert len(reading.sha256s()) == 4
    assert [name for name in again if name.endswith(".safetensors")] == []
    for path, sha256 in reading.sha256s().items():
        relative = path.relative_to(volume).as_posix()
        assert manifest.files[relative].sha256 == sha256


def test_a_byte_that_was_read_wrong_is_found(volume: Path) -> None:
    victim = next((volume / "unet").glob("*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    reading = start_reading(volume, half=True, hashed=True)
    assert reading is not None

    with pytest.raises(WeightsError, match=victim.name):
        verify(volume.parent, volume.name, reading.sha256s())


def _deployment(volume: Path) -> Deployment:
    return Deployment(base_model=volume.name, weights_mount=str(volume.parent))


def test_what_a_snapshot_holds_is_used_only_while_the_volume_holds_the_same(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_again = Weights(problem="read again")
    monkeypatch.setattr(starting, "read_weights", lambda *_: read_again)
    deployment, settings = _deployment(volume), Settings()
    held = Weights(model=None, manifest=read_manifest(volume.parent, volume.name))

    assert still_current(held, deployment, settings) is held
    # Filled anew, with another file.
    (volume / "model_index.json").write_text(
        (volume / "model_index.json").read_text().replace("{", "{ ", 1)
    )
    shutil.copytree(volume, volume.parent / "other")
    fill(volume.parent, str(volume.parent / "other"), force=True)
    (volume.parent / "other.manifest.json").replace(volume.parent / f"{volume.name}.manifest.json")
    assert still_current(held, deployment, settings) is read_again
    # A snapshot of a failure is not kept for ever either.
    assert still_current(Weights(problem="empty"), deployment, settings) is read_again


def test_an_empty_volume_is_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    deployment = Deployment(base_model="acme/other-xl", weights_mount=str(tmp_path))
    weights = starting.read_weights(deployment, Settings())

    with pytest.raises(ModelLoadFailed, match="download_weights"):
        weights.loaded()


@pytest.mark.parametrize("source", ["/weights/sdxl", "./sdxl", "models/mine/sdxl", "sdxl"])
def test_a_path_that_is_not_on_the_volume_is_not_blamed_on_the_hub(
    tmp_path: Path, source: str
) -> None:
    with pytest.raises(WeightsError, match="is not on the volume"):
        fill(tmp_path, source)


def _started(
    volume: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[starting.Started, list[str]]:
    """A start of the small model, and what its compiled code was asked for, in order."""
    asked: list[str] = []

    class Code:
        def __init__(self, folder: Path, kind: str) -> None:
            asked.append(f"{folder} {kind.partition('-')[0]}")

        def take(self) -> bool:
            asked.append("take")
            return False

        def keep(self) -> bool:
            asked.append("keep")
            return True

    monkeypatch.setattr(starting, "CompiledCode", Code)
    # What is compiled is not the matter here, and would take a minute.
    monkeypatch.setattr(speeds, "compile_whole", lambda unet: unet)
    deployment = _deployment(volume)
    own = Settings(device="cpu", dtype=Dtype.FLOAT32, base_model=str(volume), **settings)
    started = starting.go_on(starting.begin(deployment, own), deployment, own)
    asyncio.run(started.load())
    return started, asked


def test_compiled_code_is_taken_before_it_is_needed_and_kept_after_the_warm_up(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, asked = _started(volume, monkeypatch, draw_speed=DrawSpeed.COMPILED)

    assert asked == [f"/compiled torch{torch.__version__}", "take", "keep"]
    assert started.code_kept
    assert started.engine.health().status is HealthStatus.READY


def test_health_says_how_the_start_went_and_an_exact_one_compiles_nothing(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, asked = _started(volume, monkeypatch, warmup=False)
    start = started.engine.health().start

    assert start is not None
    assert start.way == "weights"
    assert set(start.seconds) == {"weights", "to_gpu", "warm_up"}
    assert all(seconds >= 0 for seconds in start.seconds.values())
    assert (asked, started.code_kept) == ([], False)
