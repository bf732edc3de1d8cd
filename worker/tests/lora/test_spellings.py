"""Whatever a file calls a layer, the same numbers give the same weights."""

from __future__ import annotations

import json

import pytest
import torch

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.lora.modules import KeyMap, sgm_names
from sdxl_contract.lora.topology import family_modules
from sdxl_worker.lora import parse_lora
from testkit.loras.making import Rig, Tensors, lora_file, save
from testkit.loras.spellings import (
    PROCESSOR,
    SPELLINGS,
    attention_modules,
    respelled,
    sgm_name,
    text_modules,
)


def merged(rig: Rig, tensors: Tensors, metadata: dict[str, str] | None = None) -> dict[str, bytes]:
    with rig.patcher.applied([(parse_lora(save(tensors, metadata), rig.targets), 0.8)]):
        return {
            name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, tensor in rig.targets.patchable()
        }


@pytest.mark.parametrize("spelling", [*SPELLINGS, PROCESSOR])
def test_every_spelling_of_one_lora_gives_identical_weights(rig: Rig, spelling: str) -> None:
    modules = attention_modules(rig.model)
    if spelling != PROCESSOR and SPELLINGS[spelling][2]:
        modules = modules + text_modules(rig.model)
    expected = merged(rig, respelled(rig.model, modules, "kohya"))
    assert merged(rig, respelled(rig.model, modules, spelling)) == expected
    assert rig.is_pristine()


@pytest.mark.parametrize(
    ("spelling", "format_name"),
    [
        ("kohya", "kohya"),
        ("kohya-sgm", "kohya-sgm"),
        ("diffusers", "diffusers"),
        ("peft", "peft"),
        ("peft, base_model.model", "peft"),
        ("lycoris prefix", "lycoris"),
    ],
)
def test_the_report_names_the_spelling(rig: Rig, spelling: str, format_name: str) -> None:
    tensors = respelled(rig.model, attention_modules(rig.model), spelling)
    report = parse_lora(save(tensors), rig.targets).report(0.5, "mine")
    assert report.format == format_name
    assert (report.algorithm, report.rank, report.scale, report.name) == ("lora", 4, 0.5, "mine")
    assert report.modules_matched == len(attention_modules(rig.model))
    assert report.modules_unmatched == []
    assert len(report.sha256) == 64


def test_original_names_agree_with_sdxl_s_published_numbers() -> None:
    names = [name[5:] for name in family_modules("sdxl") if name.startswith("unet.")]
    counted = sgm_names(names)
    assert counted == {name: sgm_name(name) for name in names}
    # Two spot checks against names as they stand in published files.
    assert counted["down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"] == (
        "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj"
    )
    assert counted["up_blocks.1.attentions.2.proj_out"] == "output_blocks.5.1.proj_out"


def test_no_two_modules_share_a_spelling() -> None:
    for family in ("sdxl", "sd1", "sd2", "sdxl-refiner"):
        modules = family_modules(family)
        keys = KeyMap(modules)
        for name in modules:
            root, _, rest = name.partition(".")
            prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_"}.get(root, "lora_te2_")
            found = keys.resolve(prefix + rest.replace(".", "_"))
            assert found is not None
            assert found.module == name


def test_layers_per_block_are_counted_off_the_model() -> None:
    names = [
        f"down_blocks.{block}.resnets.{layer}.conv1" for block in range(2) for layer in range(3)
    ]
    names += ["down_blocks.0.downsamplers.0.conv", "up_blocks.1.resnets.0.conv1"]
    names += [f"up_blocks.0.resnets.{layer}.conv1" for layer in range(4)]
    counted = sgm_names(names)
    assert counted["down_blocks.0.downsamplers.0.conv"] == "input_blocks.4.0.op"
    assert counted["down_blocks.1.resnets.0.conv1"] == "input_blocks.5.0.in_layers.2"
    assert counted["up_blocks.1.resnets.0.conv1"] == "output_blocks.4.0.in_layers.2"


def test_lora_te_is_the_first_text_encoder(rig: Rig) -> None:
    modules = [name for name in text_modules(rig.model) if name.startswith("text_encoder.")]
    named = respelled(rig.model, modules, "kohya")
    old = {key.replace("lora_te1_", "lora_te_"): tensor for key, tensor in named.items()}
    assert merged(rig, old) == merged(rig, named)


def test_old_text_encoder_attention_names_are_read(rig: Rig) -> None:
    modules = text_modules(rig.model)
    named = respelled(rig.model, modules, "diffusers")
    renamed = {}
    for key, tensor in named.items():
        for new, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v")):
            key = key.replace(f"{new}.lora.", f"{old}_lora.")
        renamed[key.replace("out_proj.lora.", "to_out_lora.")] = tensor
    assert renamed.keys() != named.keys()
    assert merged(rig, renamed) == merged(rig, named)


def test_alpha_in_diffusers_metadata_counts(rig: Rig) -> None:
    modules = attention_modules(rig.model)[:10]
    halved = (
        {
            key: tensor
            for module in range(10)
            for key, tensor in respelled(rig.model, [modules[module]], "kohya", seed=module).items()
        }
        | {  # the same, with α = 2 at rank 4 in the file itself
            f"lora_unet_{name[5:].replace('.', '_')}.alpha": torch.tensor(2.0) for name in modules
        }
    )
    peft = respelled(rig.model, modules, "peft")
    stated = json.dumps({"unet.r": 4, "unet.lora_alpha": 2})
    assert merged(rig, peft, {"lora_adapter_metadata": stated}) == merged(rig, halved)
    # rsLoRA: α / √r, here 1 / √4.
    stated = json.dumps({"unet.r": 4, "unet.lora_alpha": 1, "unet.use_rslora": True})
    assert merged(rig, peft, {"lora_adapter_metadata": stated}) == merged(rig, halved)
    pattern = {"unet.lora_alpha": 7, "unet.alpha_pattern": {name[5:]: 2 for name in modules}}
    stated = json.dumps(pattern)
    assert merged(rig, peft, {"lora_adapter_metadata": stated}) == merged(rig, halved)


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e300", "1" + "0" * 400, '"4"', "true"])
def test_a_bad_alpha_in_metadata_is_refused(rig: Rig, alpha: str) -> None:
    peft = respelled(rig.model, attention_modules(rig.model)[:2], "peft")
    with pytest.raises(LoraLoadFailed, match="lora_adapter_metadata"):
        parse_lora(
            save(peft, {"lora_adapter_metadata": f'{{"unet.lora_alpha": {alpha}}}'}), rig.targets
        )


def test_stray_keys_are_named_and_skipped(rig: Rig) -> None:
    tensors = respelled(rig.model, attention_modules(rig.model), "kohya")
    expected = merged(rig, tensors)
    strays = {"bundle_emb.hero.clip_l": torch.ones(2, 8), "some_counter": torch.tensor([3])}
    report = parse_lora(save(tensors | strays), rig.targets).report(1.0)
    assert sorted(report.modules_unmatched) == sorted(strays)
    assert merged(rig, tensors | strays) == expected


def test_a_layer_that_does_not_exist_is_an_error_not_a_stray(rig: Rig) -> None:
    tensors = lora_file(rig.model, "lora")
    for stem in ("lora_unet_down_blocks_9_attentions_0_proj_in", "unknown.layer"):
        extra = {
            f"{stem}.lora_down.weight": torch.ones(4, 64),
            f"{stem}.lora_up.weight": torch.ones(64, 4),
        }
        with pytest.raises(LoraLoadFailed, match="name no layer"):
            parse_lora(save(tensors | extra), rig.targets)
    assert rig.is_pristine()
