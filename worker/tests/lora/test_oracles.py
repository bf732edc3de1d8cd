"""The same files through other people's packages: lycoris-lora, peft, diffusers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdxl_worker.lora import parse_lora
from testkit.loras.making import MAKERS, Rig, Tensors, kohya_stem, lora_file, save, tiny_model
from testkit.loras.spellings import attention_modules, respelled, text_modules

pytestmark = pytest.mark.process


MODULES = [
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.up_blocks.0.attentions.1.transformer_blocks.2.ff.net.0.proj",
    "unet.down_blocks.1.resnets.0.conv1",
    "unet.down_blocks.1.resnets.0.conv_shortcut",
    "unet.up_blocks.0.upsamplers.0.conv",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
]


@pytest.fixture(scope="module")
def exact_rig() -> Rig:
    return Rig(torch.float32)


def live_modules(rig: Rig) -> dict[str, nn.Module]:
    """Full diffusers name → module."""
    found = {}
    for root, module in rig.model.roots().items():
        for name, child in module.named_modules():
            if root == "text_encoder" and not name.startswith("text_model."):
                name = f"text_model.{name}"
            found[f"{root}.{name}"] = child
    return found


def ours(rig: Rig, tensors: Tensors, scale: float = 1.0) -> dict[str, Tensor]:
    with rig.patcher.applied([(parse_lora(save(tensors), rig.targets), scale)]):
        return {name: t.weight.detach().clone() for name, t in rig.targets.modules.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", [name for name in MAKERS if name != "full"])
def test_lycoris_merges_to_the_same_weights(exact_rig: Rig, algorithm: str) -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    from lycoris.functional.general import weight_decompose
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    family = {"loha": LohaModule, "lokr": LokrModule}.get(algorithm.split("-")[0], LoConModule)
    # A kronecker factor with a rank as wide as itself is stored whole: here they are small.
    rank = 2 if "lokr" in algorithm else 4
    tensors = lora_file(
        exact_rig.model, algorithm, modules=MODULES, rank=rank, alpha=1.5, dtype=torch.float32
    )
    merged = ours(exact_rig, tensors)
    live = live_modules(exact_rig)
    for name in MODULES:
        stem = kohya_stem(name)
        parts = [tensors.get(f"{stem}.{part}") for part in family.weight_list]
        # Made without its magnitude, as the loader only knows the per-output kind.
        magnitude, parts[-1] = parts[-1], None
        weight = live[name].weight
        with torch.no_grad():
            theirs = family.make_module_from_state_dict(stem, live[name], *parts)
            # The change that the module trained with. `get_merged_weight` of 4.1.3 multiplies a
            # LoHa's or LoKr's by α / rank once more, which its `forward` does not.
            if family is LoConModule:
                expected = weight + theirs.get_diff_weight(shape=weight.shape)[0]
            else:
                expected = weight + theirs.get_weight(weight.shape)
            if magnitude is not None:
                expected = weight_decompose(expected, magnitude, 1, algorithm.endswith("-out"))
        assert torch.allclose(merged[name], expected, rtol=2e-5, atol=2e-6), name


def test_lycoris_norm_and_full_modules_agree(exact_rig: Rig) -> None:
    from lycoris.modules.full import FullModule
    from lycoris.modules.norms import NormModule

    live = live_modules(exact_rig)
    norm, linear = "unet.mid_block.resnets.0.norm1", MODULES[0]
    w, b = torch.randn(64), torch.randn(64)
    diff = torch.randn(64, 64)
    tensors = {
        f"{kohya_stem(norm)}.w_norm": w,
        f"{kohya_stem(norm)}.b_norm": b,
        f"{kohya_stem(linear)}.diff": diff,
    }
    merged = ours(exact_rig, tensors)
    with torch.no_grad():
        theirs = NormModule.make_module_from_state_dict("n", live[norm], w, b)
        assert torch.allclose(merged[norm], theirs.get_merged_weight()[0], atol=1e-6)
        full = FullModule.make_module_from_state_dict("f", live[linear], diff, None)
        assert torch.allclose(merged[linear], full.get_merged_weight()[0], atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_peft_merges_to_the_same_weights(exact_rig: Rig, dora: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny_model(torch.float32)
    targets = ["to_q", "to_k", "to_out.0", "proj_in", "conv1", "conv_shortcut"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_dora=dora)
    torch.manual_seed(3)
    unet = inject_adapter_in_model(config, model.unet, "x")
    tensors: Tensors = {}
    for name, parameter in unet.named_parameters():
        if "lora_" not in name:
            continue
        with torch.no_grad():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            else:
                parameter.normal_(0, 0.1)
        tensors[f"unet.{name.replace('.x', '')}"] = parameter.detach().clone()
    # PEFT's own files hold no α: diffusers keeps it in the metadata.
    metadata = {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 6}'}
    lora = parse_lora(save(tensors, metadata), exact_rig.targets)
    assert ("dora" in lora.algorithm) is dora
    checked = 0
    with exact_rig.patcher.applied([(lora, 1.0)]):
        for name, module in unet.named_modules():
            if not hasattr(module, "merge") or not hasattr(module, "base_layer"):
                continue
            module.merge()
            found = exact_rig.targets.modules[f"unet.{name}"].weight
            expected = module.base_layer.weight
            assert torch.allclose(found, expected, rtol=2e-5, atol=2e-6), name
            checked += 1
    assert checked == len(lora.layers) > 50


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spelling", ["kohya-sgm", "kohya", "peft"])
def test_diffusers_fuses_to_the_same_weights(exact_rig: Rig, spelling: str) -> None:
    from diffusers import StableDiffusionXLPipeline

    model = tiny_model(torch.float32)
    names = attention_modules(model)[:40] + text_modules(model)
    tensors = respelled(model, names, spelling)
    merged = ours(exact_rig, tensors, 0.7)
    pipeline: Any = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=None,
        tokenizer_2=None,
        unet=model.unet,
        scheduler=None,
    )
    # `load_lora_weights` takes the dictionary apart.
    pipeline.load_lora_weights(dict(tensors))
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    checked = 0
    for name, target in model.targets().modules.items():
        assert torch.allclose(merged[name], target.weight, rtol=2e-5, atol=2e-6), name
        checked += name in names
    assert checked == len(names)
