"""A checkpoint in one file: what it says of itself, and the folder that it becomes."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdxl_worker.deploying.single_file import WeightsError, check_single_file
from sdxl_worker.deploying.volume import fill, verify
from testkit.doubles.hub_double import HubDouble, hub_double
from testkit.single_file_writer import write_single_file
from testkit.worker import MODEL, FileServer, safetensors_bytes

pytestmark = pytest.mark.process


MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")


@pytest.fixture
def hub() -> Iterator[HubDouble]:
    with hub_double() as running:
        yield running


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The small model, in full precision."""
    pipeline_class: Any = diffusers.StableDiffusionXLPipeline
    return pipeline_class.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def single_file(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as one file, in the layout that checkpoints are shared in."""
    path = tmp_path_factory.mktemp("single") / "my-checkpoint.safetensors"
    write_single_file(pipe, path)
    return path


def test_a_single_file_becomes_a_folder_with_the_very_weights(
    tmp_path: Path, pipe: Any, single_file: Path
) -> None:
    manifest = fill(tmp_path, str(single_file), half=False, config=str(MODEL))

    assert verify(tmp_path, "my-checkpoint") == manifest
    for part in MODELS:
        stored: dict[str, torch.Tensor] = {}
        for file in (tmp_path / "my-checkpoint" / part).glob("*.safetensors"):
            stored |= load_file(file)
        expected = getattr(pipe, part).state_dict()
        # This version of transformers may spell its own names otherwise on disk.
        by_end = {name.removeprefix("text_model."): tensor for name, tensor in stored.items()}
        assert len(by_end) == len(expected)
        for name, tensor in expected.items():
            assert torch.equal(by_end[name.removeprefix("text_model.")], tensor), name


def converted(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: Path = MODEL, *, half: bool = True
) -> Path:
    """The folder that a file with these tensors becomes."""
    path = tmp_path / "changed.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    fill(tmp_path / "weights", str(path), config=str(config), half=half)
    return tmp_path / "weights" / "changed"


def plain_config(tmp_path: Path) -> Path:
    """A configuration like SDXL's own: the small model's, but the network predicts noise."""
    config = tmp_path / "config"
    shutil.copytree(MODEL, config, ignore=shutil.ignore_patterns("unet/*.safetensors"))
    file = config / "scheduler" / "scheduler_config.json"
    kept = json.loads(file.read_text()) | {
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "leading",
    }
    file.write_text(json.dumps(kept))
    return config


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((), ("epsilon", False, "leading")),
        (("v_pred",), ("v_prediction", False, "leading")),
        (("v_pred", "ztsnr"), ("v_prediction", True, "trailing")),
    ],
)
def test_a_file_that_says_what_its_network_predicts_is_believed(
    tmp_path: Path, single_file: Path, marks: tuple[str, ...], expected: tuple[object, ...]
) -> None:
    tensors = load_file(single_file) | {mark: torch.zeros(0) for mark in marks}
    folder = converted(tmp_path, tensors, plain_config(tmp_path))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())

    names = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    assert tuple(scheduler[name] for name in names) == expected


def test_a_file_without_a_vae_gets_the_configuration_s(
    tmp_path: Path, pipe: Any, single_file: Path
) -> None:
    tensors = {n: t for n, t in load_file(single_file).items() if not n.startswith("first_stage")}
    folder = converted(tmp_path, tensors, half=False)
    stored = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")

    assert all(torch.equal(stored[name], t) for name, t in pipe.vae.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("half", [True, False])
def test_files_of_every_precision_are_taken_in_the_one_wanted(
    tmp_path: Path, single_file: Path, dtype: torch.dtype, half: bool
) -> None:
    folder = converted(
        tmp_path, {n: t.to(dtype) for n, t in load_file(single_file).items()}, half=half
    )
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")

    assert {t.dtype for t in stored.values()} == {torch.float16 if half else torch.float32}


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("model.diffusion_model.", "its UNet is missing"),
        ("conditioner.embedders.0.", "its first text encoder is missing"),
        ("conditioner.embedders.1.", "it lacks text encoders"),
        ("model.diffusion_model.input_blocks.0.", "could not be turned into a pipeline"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    tmp_path: Path, single_file: Path, prefix: str, says: str
) -> None:
    tensors = {n: t for n, t in load_file(single_file).items() if not n.startswith(prefix)}

    with pytest.raises(WeightsError, match=f"^changed.safetensors .*{says}"):
        converted(tmp_path, tensors)
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize(
    ("value", "half", "says"),
    [
        (float("nan"), False, "unet.conv_in.weight holds values .* in 32 bit"),
        (1e6, True, "unet.conv_in.weight holds values .* in 16 bit: try DTYPE=float32"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, single_file: Path, value: float, half: bool, says: str
) -> None:
    tensors = load_file(single_file)
    tensors["model.diffusion_model.input_blocks.0.0.weight"][0, 0, 0, 0] = value

    with pytest.raises(WeightsError, match=says):
        converted(tmp_path, tensors, half=half)


@pytest.mark.parametrize("cut", [1, 1000, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, single_file: Path, cut: int) -> None:
    data = single_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: len(data) // 2] if cut < 0 else data[:-cut])

    with pytest.raises(WeightsError, match=r"^cut.safetensors could not .* it may be damaged"):
        fill(tmp_path / "weights", str(path), config=str(MODEL))
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_signed_url_s_next_signature_is_no_new_model(
    tmp_path: Path, single_file: Path, files: FileServer
) -> None:
    url = files.add(single_file.read_bytes(), "/my-checkpoint.safetensors").partition("?")[0]
    manifest = fill(tmp_path, f"{url}?signature=1", config=str(MODEL))
    files.files.clear()

    assert fill(tmp_path, f"{url}?signature=2", config=str(MODEL)) == manifest


@pytest.mark.parametrize("place", ["hub", "url"])
def test_a_single_file_comes_from_anywhere(
    tmp_path: Path, single_file: Path, hub: HubDouble, files: FileServer, place: str
) -> None:
    data = single_file.read_bytes()
    hub.repositories["acme/files"] = {"v2/my-checkpoint.safetensors": data, "README.md": b""}
    source = {
        "hub": "acme/files/v2/my-checkpoint.safetensors",
        "url": files.add(data, "/my-checkpoint.safetensors"),
    }[place]
    manifest = fill(tmp_path, source, endpoint=hub.url, config=str(MODEL))

    assert verify(tmp_path, "my-checkpoint") == manifest
    assert not [name for name in manifest.files if "my-checkpoint" in name]
    assert "secret" not in manifest.model_dump_json()
    unet = tmp_path / "my-checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
    assert {tensor.dtype for tensor in load_file(unet).values()} == {torch.float16}


def test_a_missing_file_of_a_repository_is_named(tmp_path: Path, hub: HubDouble) -> None:
    hub.repositories["acme/files"] = {"README.md": b""}

    with pytest.raises(WeightsError, match=r"acme/files holds no v2/x.safetensors"):
        fill(tmp_path, "acme/files/v2/x.safetensors", endpoint=hub.url)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        ("lora_unet_down.lora_up.weight", "a LoRA"),
        ("cond_stage_model.transformer.x", "Stable Diffusion 1 or 2"),
        ("conditioner.embedders.0.model.x", "refiner"),
        ("double_blocks.0.x", "Flux"),
        ("down_blocks.0.x", "lacks text encoders"),
    ],
)
def test_a_single_file_of_another_kind_is_named(tmp_path: Path, tensor: str, says: str) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors_bytes({tensor: np.zeros((1, 1))}))

    with pytest.raises(WeightsError, match=f"other.safetensors is not an SDXL checkpoint.*{says}"):
        check_single_file(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04" + b"\0" * 40, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 1) + b"3"],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)

    with pytest.raises(WeightsError, match=r"broken.safetensors is not a .safetensors file"):
        check_single_file(path)
