"""Weights that are the pages of their files: as exact as copies, and found out when they change."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sdxl_contract.errors import ModelLoadFailed
from sdxl_worker.assembly import assemble
from sdxl_worker.loading.mapped_weights import MappedFile
from sdxl_worker.loading.pipeline import LoadedModel, load_model
from sdxl_worker.lora import LoraPatcher, ModelCorrupted, lora_targets, parse_lora
from testkit.worker import MODEL, kohya_lora, settings

pytestmark = pytest.mark.process


# float16 is what the files hold: so that their very pages can be the weights.
HALF: dict[str, Any] = {"dtype": "float16"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(MODEL, tmp_path / "model")


def patcher_of(model: LoadedModel) -> LoraPatcher:
    pipe = model.pipe
    targets = lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    return LoraPatcher(targets, kept=model.mapped)


def bits_of(model: LoadedModel) -> dict[str, bytes]:
    return {
        f"{part}.{name}": hashlib.sha256(tensor.detach().numpy().tobytes()).digest()
        for part in ("unet", "text_encoder", "text_encoder_2", "vae")
        for name, tensor in getattr(model.pipe, part).state_dict().items()
    }


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def a_lora(model: LoadedModel, seed: int = 0) -> Any:
    targets = patcher_of(model)._targets
    return parse_lora(kohya_lora(targets.shapes, seed=seed), targets)


def test_a_lora_goes_into_mapped_weights_and_out_again_and_the_files_stay_as_they_are(
    folder: Path,
) -> None:
    files = files_of(folder)
    mapped = load_model(settings(base_model=str(folder), **HALF))
    copied = load_model(settings(base_model=str(folder), map_weights=False, **HALF))
    assert (mapped.mapped is not None, copied.mapped is None) == (True, True)
    patchers = {"mapped": patcher_of(mapped), "copied": patcher_of(copied)}
    # No copy of the weights at all, where the other has one of every weight.
    assert patchers["mapped"].pristine_bytes == 0
    assert patchers["copied"].pristine_bytes > 5_000_000
    before = bits_of(mapped)
    assert before == bits_of(copied)

    for seed in range(5):
        lora = a_lora(mapped, seed)
        during = []
        for model, patcher in zip((mapped, copied), patchers.values(), strict=True):
            with patcher.applied([(lora, 0.8)]):
                during.append(bits_of(model))
        assert during[0] == during[1] != before
        assert bits_of(mapped) == bits_of(copied) == before
    patchers["mapped"].verify_full()

    assert files_of(folder) == files


def test_weights_in_another_precision_than_the_file_have_a_copy(folder: Path) -> None:
    model = load_model(settings(base_model=str(folder), dtype="float32"))
    patcher = patcher_of(model)

    assert patcher.pristine_bytes > 10_000_000
    # What nobody's weights are views of may change.
    for path in folder.rglob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    with patcher.applied([(a_lora(model), 1.0)]):
        pass


@pytest.mark.parametrize("change", ["one byte", "cut at the end", "only the time"])
def test_a_file_that_is_written_while_it_is_mapped_ends_the_service(
    folder: Path, change: str
) -> None:
    model = load_model(settings(base_model=str(folder), **HALF))
    patcher = patcher_of(model)
    lora = a_lora(model)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"

    patcher.apply([(lora, 0.5)])
    if change == "one byte":
        with path.open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(b"\x55")
    elif change == "cut at the end":
        os.truncate(path, path.stat().st_size - 2)
    else:
        os.utime(path, ns=(1, 1))

    with pytest.raises(ModelCorrupted, match=r"diffusion_pytorch_model\.safetensors was written"):
        patcher.restore()
    with pytest.raises(ModelLoadFailed):
        patcher.apply([(lora, 0.5)])


def test_a_file_that_is_replaced_leaves_the_mapped_one_alone(folder: Path) -> None:
    model = load_model(settings(base_model=str(folder), **HALF))
    patcher, before = patcher_of(model), bits_of(model)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    part = path.with_suffix(".part")
    part.write_bytes(b"\0" * path.stat().st_size)
    part.replace(path)

    with patcher.applied([(a_lora(model), 0.5)]):
        pass

    assert bits_of(model) == before


def test_the_pristine_map_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(64)) * 100)
    code = (
        "import sys, pathlib; from sdxl_worker.loading.mapped_weights import MappedFile\n"
        "file = MappedFile(pathlib.Path(sys.argv[1]))\n"
        "live = file.live(); twin = file.twin(live[:64]); assert twin.tolist() == list(range(64))\n"
        "live[0] = 9; print(live[0].item(), twin[0].item(), flush=True)\n"
        "twin[0] = 9; print('written')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )

    assert result.stdout.split() == ["9", "0"]
    # The memory's own protection ends the process.
    assert result.returncode < 0
    assert path.read_bytes()[:64] == bytes(range(64))


def test_only_parts_of_the_file_have_a_twin(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    file = MappedFile(path)
    live = file.live()

    inner = live[8:24].view(torch.float32).view(2, 2)
    twin = file.twin(inner)
    assert twin is not None
    assert (twin.shape, twin.dtype) == (inner.shape, inner.dtype)
    assert torch.equal(twin.view(torch.uint8), inner.view(torch.uint8))
    assert file.twin(torch.zeros(4)) is None
    assert file.twin(live[8:24].view(2, 8).t()) is None


@pytest.mark.long
def test_the_whole_worker_takes_the_files_for_its_pristine_copy(folder: Path) -> None:
    config = settings(base_model=str(folder), **HALF)
    ready = assemble(config, load_model(config), fetcher=None)  # type: ignore[arg-type]

    assert ready.patcher.pristine_bytes == 0
