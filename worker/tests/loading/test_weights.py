"""Weights on a volume: what is taken, that it is hashed, and that damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdxl_worker.deploying.single_file import WeightsError
from sdxl_worker.deploying.volume import fill, model_name, select_files, verify
from testkit.doubles.hub_double import COMMIT, HubDouble, hub_double
from testkit.worker import FileServer

pytestmark = pytest.mark.process


MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")


def pipeline_files(*, half: bool = False, plain: bool = True) -> dict[str, bytes]:
    """Names and contents of a repository as the hub's SDXL ones are, a few bytes each."""
    files = {
        "model_index.json": json.dumps({"_class_name": "StableDiffusionXLPipeline"}).encode(),
        "README.md": b"# model",
        "sd_xl_base_1.0.safetensors": b"single file",
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/vocab.json": b"{}",
        "tokenizer/merges.txt": b"#",
        "tokenizer_2/vocab.json": b"{}",
        "unet/model.onnx": b"onnx",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "vae_1_0/diffusion_pytorch_model.safetensors": b"old vae",
    }
    for model in MODELS:
        stem = "model" if model.startswith("text") else "diffusion_pytorch_model"
        files[f"{model}/config.json"] = b"{}"
        if plain:
            files[f"{model}/{stem}.safetensors"] = f"{model} full".encode()
        if half:
            files[f"{model}/{stem}.fp16.safetensors"] = f"{model} half".encode()
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder on the machine at hand."""
    root = tmp_path / "from" / "my-model"
    for name, data in pipeline_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def hub() -> Iterator[HubDouble]:
    with hub_double() as running:
        yield running


def test_only_what_a_pipeline_is_loaded_from_is_taken() -> None:
    chosen = select_files(pipeline_files(half=True), half=True)

    assert "unet/diffusion_pytorch_model.fp16.safetensors" in chosen
    assert "tokenizer/merges.txt" in chosen
    assert not [name for name in chosen if name.endswith((".bin", ".onnx", ".md"))]
    assert "unet/diffusion_pytorch_model.safetensors" not in chosen
    assert not [name for name in chosen if name.startswith(("vae_1_0", "sd_xl"))]


def test_full_precision_is_taken_where_it_is_wanted_or_all_there_is() -> None:
    both = select_files(pipeline_files(half=True), half=False)
    only_full = select_files(pipeline_files(), half=True)

    assert "unet/diffusion_pytorch_model.safetensors" in both
    assert "unet/diffusion_pytorch_model.safetensors" in only_full
    assert not [name for name in both + only_full if "fp16" in name]


def test_half_precision_of_some_models_only_is_not_mixed_in() -> None:
    files = pipeline_files()
    files["unet/diffusion_pytorch_model.fp16.safetensors"] = b""

    assert not [name for name in select_files(files, half=True) if "fp16" in name]


def test_shards_are_taken_with_their_index() -> None:
    files = pipeline_files()
    del files["unet/diffusion_pytorch_model.safetensors"]
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    files |= dict.fromkeys([*shards, index], b"")

    assert {*shards, index} <= set(select_files(files, half=True))


@pytest.mark.parametrize(
    ("missing", "says"),
    [("model_index.json", "model_index.json is missing"), ("vae/", "no .safetensors for vae")],
)
def test_what_is_no_pipeline_is_refused(missing: str, says: str) -> None:
    files = {n: d for n, d in pipeline_files().items() if not n.startswith(missing)}

    with pytest.raises(WeightsError, match=says):
        select_files(files, half=True)


def test_a_folder_is_copied_and_hashed(tmp_path: Path, folder: Path) -> None:
    manifest = fill(tmp_path / "weights", str(folder))

    assert verify(tmp_path / "weights", "my-model") == manifest
    assert "unet/diffusion_pytorch_model.safetensors" in manifest.files
    assert manifest.total_bytes == sum(
        (tmp_path / "weights" / "my-model" / name).stat().st_size for name in manifest.files
    )
    # Nothing half done lies about.
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == [
        "my-model",
        "my-model.manifest.json",
    ]


def test_a_folder_on_the_volume_itself_can_be_named(tmp_path: Path, folder: Path) -> None:
    folder.parent.rename(tmp_path / "incoming")

    assert fill(tmp_path, "incoming/my-model").source == "incoming/my-model"


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove", "add"])
def test_damage_is_found_and_the_file_named(tmp_path: Path, folder: Path, damage: str) -> None:
    root = tmp_path / "weights"
    fill(root, str(folder))
    victim = root / "my-model" / "vae" / "diffusion_pytorch_model.safetensors"
    data = victim.read_bytes()
    if damage == "flip":
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "shorten":
        victim.write_bytes(data[:-1])
    elif damage == "remove":
        victim.unlink()
    else:
        victim = victim.with_name("extra.bin")
        victim.write_bytes(b"pickle")

    with pytest.raises(WeightsError, match=f"my-model/vae/{victim.name}.*download_weights$"):
        verify(root, "my-model")
    assert fill(root, str(folder), force=True) == verify(root, "my-model")


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', "[" * 50])
def test_an_unreadable_manifest_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.manifest.json").write_text(text)

    with pytest.raises(WeightsError, match="manifest of m cannot be read"):
        verify(tmp_path, "m")


def test_an_empty_volume_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"modal run worker/app.py::download_weights"):
        verify(tmp_path, "m")


# --- the hub --------------------------------------------------------------------------------------


def test_a_hub_name_is_downloaded_once(tmp_path: Path, hub: HubDouble) -> None:
    hub.repositories["acme/my-xl"] = pipeline_files(half=True)
    manifest = fill(tmp_path, "acme/my-xl", endpoint=hub.url)

    assert manifest.revision == COMMIT
    assert manifest == verify(tmp_path, "my-xl")
    unet = tmp_path / "my-xl" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    assert unet.read_bytes() == b"unet half"
    assert not [path for path in hub.asked if path.endswith((".bin", ".onnx", "_1.0.safetensors"))]
    asked = len(hub.asked)
    assert fill(tmp_path, "acme/my-xl", endpoint=hub.url) == manifest
    assert len(hub.asked) == asked


def test_a_private_repository_needs_the_token(tmp_path: Path, hub: HubDouble) -> None:
    hub.repositories["acme/secret-xl"] = pipeline_files()
    hub.tokens["acme/secret-xl"] = "hf_right"

    with pytest.raises(WeightsError, match=r"answered 401.*HUGGINGFACE_HUB_TOKEN"):
        fill(tmp_path, "acme/secret-xl", endpoint=hub.url)
    assert fill(tmp_path, "acme/secret-xl", endpoint=hub.url, token="hf_right").files


def test_a_file_that_is_not_what_the_hub_promised_is_refused(
    tmp_path: Path, hub: HubDouble
) -> None:
    hub.repositories["acme/my-xl"] = pipeline_files()
    hub.promised["vae/diffusion_pytorch_model.safetensors"] = "0" * 64

    with pytest.raises(WeightsError, match=r"vae/.* is not the file that the hub promised"):
        fill(tmp_path, "acme/my-xl", endpoint=hub.url)
    assert list(tmp_path.iterdir()) == []


def test_a_branch_that_is_there_is_not_downloaded_again(tmp_path: Path, hub: HubDouble) -> None:
    hub.repositories["acme/my-xl"] = pipeline_files()
    manifest = fill(tmp_path, "acme/my-xl", endpoint=hub.url, revision="main")
    assert (manifest.revision, manifest.asked_revision) == (COMMIT, "main")
    hub.repositories.clear()

    assert fill(tmp_path, "acme/my-xl", endpoint=hub.url, revision="main") == manifest
    assert fill(tmp_path, "acme/my-xl", endpoint=hub.url, revision=COMMIT) == manifest
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fill(tmp_path, "acme/my-xl", endpoint=hub.url, revision="other")


def test_a_model_that_was_damaged_on_the_volume_is_made_anew(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "weights"
    manifest = fill(root, str(folder))
    victim = root / "my-model" / "unet" / "diffusion_pytorch_model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="has 8 bytes and must have 9"):
        verify(root, "my-model")

    assert fill(root, str(folder)).files == manifest.files
    assert verify(root, "my-model").files == manifest.files


@pytest.mark.parametrize("old", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("moment", ["_check_pipeline", "_hash_all", "_take_place", "rename"])
def test_a_filling_that_was_killed_can_be_started_again(
    tmp_path: Path, folder: Path, old: bool, moment: str
) -> None:
    """Killed for good, in a process of its own, at each place where something has just changed."""
    root = tmp_path / "weights"
    if old:
        fill(root, str(folder))
        changed = folder / "unet" / "diffusion_pytorch_model.safetensors"
        changed.write_bytes(b"another unet")
    code = f"""
import os, pathlib
from sdxl_worker.deploying import volume as weights
if {moment!r} == "rename":
    real = pathlib.Path.rename
    def rename(self, target):
        real(self, target)
        os._exit(9)
    pathlib.Path.rename = rename
else:
    setattr(weights, {moment!r}, lambda *_: os._exit(9))
weights.fill(pathlib.Path({str(root)!r}), {str(folder)!r}, force=True)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert killed.returncode == 9
    try:
        # Either the old model, whole, or none.
        left = verify(root, "my-model")
    except WeightsError:
        assert not old or moment == "rename"
    else:
        assert old
        assert left.files["unet/diffusion_pytorch_model.safetensors"].bytes == len("unet full")

    manifest = fill(root, str(folder), force=True)

    assert verify(root, "my-model") == manifest
    assert sorted(path.name for path in root.iterdir()) == ["my-model", "my-model.manifest.json"]


def test_a_failed_download_leaves_the_old_model_in_place(tmp_path: Path, hub: HubDouble) -> None:
    hub.repositories["acme/my-xl"] = pipeline_files()
    manifest = fill(tmp_path, "acme/my-xl", endpoint=hub.url)
    del hub.repositories["acme/my-xl"]

    with pytest.raises(WeightsError, match="acme/my-xl could not be downloaded"):
        fill(tmp_path, "acme/my-xl", endpoint=hub.url, force=True)
    assert verify(tmp_path, "my-xl") == manifest


def test_another_kind_of_pipeline_is_refused(tmp_path: Path, folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')

    with pytest.raises(WeightsError, match="it is a StableDiffusionPipeline, not"):
        fill(tmp_path / "weights", str(folder))


def test_a_url_is_named_without_its_query(tmp_path: Path, files: FileServer) -> None:
    url = files.url("/gone.safetensors", "token=hunter2")

    with pytest.raises(WeightsError, match="answered with status 404") as error:
        fill(tmp_path, url)
    assert "hunter2" not in str(error.value)


def test_what_is_neither_path_nor_name_nor_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no path on the volume, no hub name and no https URL"):
        fill(tmp_path, "ftp://example.com/x.safetensors")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-xl-base-1.0"),
        ("acme/files/my xl v2.safetensors", "my-xl-v2"),
        ("https://example.com/a/b.safetensors?token=x", "b"),
        ("/models/folder/", "folder"),
        ("../../etc", "etc"),
    ],
)
def test_the_folder_is_named_after_the_source(source: str, name: str) -> None:
    assert model_name(source) == name
