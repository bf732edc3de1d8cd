"""Loading a folder fast gives the very pipeline that diffusers' own loader gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from sdxl_contract.errors import ModelLoadFailed
from sdxl_worker.loading.from_folder import pipeline_from_folder
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.loading.weight_reader import NotThere, Reading, is_plain_sdxl, start_reading
from testkit.loras.plain_bytes import raw
from testkit.worker import MODEL, settings

pytestmark = pytest.mark.process


PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def pretrained(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    from diffusers import StableDiffusionXLPipeline

    cls: Any = StableDiffusionXLPipeline
    return cls.from_pretrained(str(folder), dtype=dtype, add_watermarker=False, **options)


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict((*module.named_parameters(), *module.named_buffers()))


def assert_same(ours: Any, theirs: Any) -> None:
    for part in PARTS:
        mine, other = getattr(ours, part), getattr(theirs, part)
        assert type(mine) is type(other)
        assert tensors(mine).keys() == tensors(other).keys()
        for name, tensor in tensors(mine).items():
            expected = tensors(other)[name]
            assert tensor.device.type == "cpu", f"{part}.{name} was never filled"
            assert tensor.dtype == expected.dtype, f"{part}.{name}"
            assert torch.equal(tensor, expected), f"{part}.{name}"
        assert not any(child.training for child in mine.modules())
        attention = "_attn_implementation"
        assert getattr(mine.config, attention, None) == getattr(other.config, attention, None)
    assert ours.config.force_zeros_for_empty_prompt == theirs.config.force_zeros_for_empty_prompt
    assert ours.scheduler.config == theirs.scheduler.config
    text = "a red apple, (well) lit; Ünïcode"
    for name in ("tokenizer", "tokenizer_2"):
        assert getattr(ours, name)(text).input_ids == getattr(theirs, name)(text).input_ids


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folder_read_fast_is_the_pretrained_pipeline_bit_for_bit(
    dtype: torch.dtype, mapped: bool
) -> None:
    reading = start_reading(MODEL, half=dtype is torch.float16, mapped=mapped)
    assert reading is not None

    assert_same(pipeline_from_folder(MODEL, reading, dtype), pretrained(MODEL, dtype))


def test_it_draws_the_same_latents() -> None:
    """As it is drawn with: torch multiplies by weights that need no gradient in another way, with
    other roundings, where what it is given does not lie in a row."""
    pipes = [load_model(settings()).pipe, pretrained(MODEL, torch.float32)]
    for part in PARTS:
        needs = [parameter.requires_grad for parameter in getattr(pipes[0], part).parameters()]
        assert needs == [one.requires_grad for one in getattr(pipes[1], part).parameters()]
    drawn = []
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        drawn.append(
            pipe(
                "a red apple",
                width=64,
                height=64,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(1),
                output_type="latent",
            ).images
        )

    assert torch.equal(drawn[0], drawn[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(MODEL, tmp_path / "model")


def test_the_fp16_variant_is_taken_for_half_precision_only(folder: Path) -> None:
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        path = folder / part / f"{stem}.safetensors"
        half = {n: t.half() * 2 for n, t in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file(half, path.with_name(f"{stem}.fp16.safetensors"))
    found = {
        wanted: Reading(folder, half=wanted).tensors("unet", torch.float32)
        for wanted in (True, False)
    }
    name = "conv_in.weight"

    assert torch.equal(found[True][name], (found[False][name].half() * 2).float())
    assert Reading(folder, half=True).half
    # A reading begun on a wrong guess is not used for full precision.
    config = settings(base_model=str(folder))
    loaded = load_model(config, Reading(folder, half=True))
    assert torch.equal(loaded.pipe.unet.conv_in.weight, found[False][name])


def test_a_sharded_model_is_put_together(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = safetensors.torch.load_file(path)
    names = sorted(whole)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        shard = f"diffusion_pytorch_model-{number}.safetensors"
        safetensors.torch.save_file({n: whole[n] for n in part}, path.with_name(shard))
        index |= dict.fromkeys(part, shard)
    path.unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    found = Reading(folder, half=False).tensors("unet", torch.float32)

    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name].float()) for name in names)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_is_not_aligned_is_read_all_the_same(folder: Path, mapped: bool) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    values = torch.arange(6, dtype=torch.float32).view(2, 3)
    header = json.dumps({
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1, 25]},
    }).encode()  # fmt: skip
    path.write_bytes(raw(header, b"\7" + values.numpy().tobytes()))
    found = Reading(folder, half=False, mapped=mapped).tensors("vae", torch.float32)

    assert found["a"].tolist() == [7]
    assert torch.equal(found["b"], values)


def test_another_pipeline_or_a_folder_without_safetensors_goes_the_slow_way(folder: Path) -> None:
    assert is_plain_sdxl(folder)
    (folder / "text_encoder" / "model.safetensors").unlink()
    assert start_reading(folder, half=False) is None
    with pytest.raises(NotThere, match="text_encoder"):
        Reading(folder, half=False)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "Other"}))
    assert not is_plain_sdxl(folder)
    assert not is_plain_sdxl(folder / "nowhere")
    assert start_reading(folder, half=False) is None


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "another model's"])
def test_weights_that_cannot_be_read_are_a_load_failure_without_a_path(
    folder: Path, damage: str, mapped: bool
) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "another model's":
        shutil.copy(folder / "vae" / path.name, path)
    else:
        whole = path.read_bytes()
        cut = {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"\xff" * 4000}
        path.write_bytes(cut[damage])
    with pytest.raises(ModelLoadFailed) as caught:
        load_model(settings(base_model=str(folder), map_weights=mapped))

    assert str(folder.parent) not in caught.value.message


def test_a_model_that_was_made_for_inpainting_is_refused_by_its_channels(folder: Path) -> None:
    """It would load, and then fail at every drawing: nothing here gives it a mask's channels."""
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros(first.shape[0], 5, 3, 3)], 1)
    safetensors.torch.save_file(weights, path)

    with pytest.raises(ModelLoadFailed, match=r"for inpainting.*takes 9 channels") as caught:
        load_model(settings(base_model=str(folder)))
    assert caught.value.details == {"base_model": folder.name, "channels": 9}


def test_channels_last_is_a_setting() -> None:
    plain = load_model(settings()).pipe.unet.conv_in.weight
    last = load_model(settings(channels_last=True)).pipe.unet.conv_in.weight

    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)
