"""Parts of a change that few files have: a trained bias, a trained scalar, α by patterns."""

from __future__ import annotations

import json

import pytest
import torch

from sdxl_contract.errors import LoraLoadFailed
from sdxl_worker.lora import parse_lora
from testkit.loras.making import Rig, Tensors, kohya_stem, lora_file, save

TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
FEED = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2"


def merged(rig: Rig, tensors: Tensors, metadata: dict[str, str] | None = None) -> Tensors:
    lora = parse_lora(save(tensors, metadata), rig.targets)
    with rig.patcher.applied([(lora, 0.5)]):
        return {name: tensor.detach().clone() for name, tensor in rig.targets.patchable()}


def as_peft(tensors: Tensors, module: str) -> Tensors:
    stem = kohya_stem(module)
    return {
        f"{module}.lora_A.weight": tensors[f"{stem}.lora_down.weight"],
        f"{module}.lora_B.weight": tensors[f"{stem}.lora_up.weight"],
    }


@pytest.mark.parametrize("ending", ["lora_B.bias", "lora_B.default.bias"])
def test_peft_s_lora_bias_is_added_with_alpha_over_rank(rig: Rig, ending: str) -> None:
    bias = torch.linspace(-1, 1, 64)
    made = as_peft(lora_file(rig.model, "lora", modules=[FEED], alpha=None), FEED)
    stated = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})}  # rank 4
    base = rig.targets.modules[FEED].bias
    assert base is not None
    expected = (base.double() + 0.5 * (2 / 4) * bias.double()).to(rig.dtype)
    found = merged(rig, made | {f"{FEED}.{ending}": bias}, stated)
    assert torch.equal(found[f"{FEED}.bias"], expected)
    assert torch.equal(found[f"{FEED}.weight"], merged(rig, made, stated)[f"{FEED}.weight"])
    assert rig.is_pristine()


def test_a_lora_bias_on_a_layer_without_bias_is_refused(rig: Rig) -> None:
    made = as_peft(lora_file(rig.model, "lora", modules=[TO_Q], alpha=None), TO_Q)
    with pytest.raises(LoraLoadFailed, match=r"changes the bias of .*to_q, which has none"):
        parse_lora(save(made | {f"{TO_Q}.lora_B.bias": torch.ones(64)}), rig.targets)


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr-full", "full", "dora-out"])
def test_a_scalar_multiplies_the_whole_change(rig: Rig, algorithm: str) -> None:
    plain = lora_file(rig.model, algorithm, modules=[TO_Q], alpha=4.0)
    factor = {"lora": "lora_up.weight", "dora-out": "lora_up.weight", "loha": "hada_w1_a",
              "lokr-full": "lokr_w1", "full": "diff"}[algorithm]  # fmt: skip
    stem = kohya_stem(TO_Q)
    quartered = plain | {f"{stem}.{factor}": plain[f"{stem}.{factor}"] * 0.25}
    with_scalar = plain | {f"{stem}.scalar": torch.tensor(0.25)}
    assert torch.equal(
        merged(rig, with_scalar)[f"{TO_Q}.weight"], merged(rig, quartered)[f"{TO_Q}.weight"]
    )


def test_a_scalar_of_more_than_one_number_is_refused(rig: Rig) -> None:
    made = lora_file(rig.model, "lora", modules=[TO_Q])
    with pytest.raises(LoraLoadFailed, match="scalar"):
        parse_lora(save(made | {f"{kohya_stem(TO_Q)}.scalar": torch.ones(2)}), rig.targets)


def test_alpha_of_an_attention_processor_counts(rig: Rig) -> None:
    made = lora_file(rig.model, "lora", modules=[TO_OUT], alpha=1.0)
    stem, owner = kohya_stem(TO_OUT), TO_OUT.removesuffix(".to_out.0")
    spelled = {
        f"{owner}.processor.to_out_lora.down.weight": made[f"{stem}.lora_down.weight"],
        f"{owner}.processor.to_out_lora.up.weight": made[f"{stem}.lora_up.weight"],
    }
    for ending in ("to_out_lora.alpha", "to_out.alpha"):
        found = merged(rig, spelled | {f"{owner}.processor.{ending}": torch.tensor(1.0)})
        assert torch.equal(found[f"{TO_OUT}.weight"], merged(rig, made)[f"{TO_OUT}.weight"])


def test_alpha_patterns_are_read_as_peft_reads_names(rig: Rig) -> None:
    """A name, the end of one, or a whole one behind `^`; dots may be escaped."""
    peft = as_peft(lora_file(rig.model, "lora", modules=[TO_Q], alpha=None), TO_Q)
    expected = merged(rig, lora_file(rig.model, "lora", modules=[TO_Q], alpha=2.0))
    name = TO_Q.removeprefix("unet.")
    for key in ("to_q", "attn1.to_q", r"attn1\.to_q", name, f"^{name}$", f"^{name}"):
        stated = json.dumps({"unet.lora_alpha": 7, "unet.alpha_pattern": {key: 2, "to_out.0": 9}})
        found = merged(rig, peft, {"lora_adapter_metadata": stated})
        assert torch.equal(found[f"{TO_Q}.weight"], expected[f"{TO_Q}.weight"]), key
    for key in ("^to_q", "o_q", "^attn1.to_q"):
        stated = json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {key: 7}})
        found = merged(rig, peft, {"lora_adapter_metadata": stated})
        assert torch.equal(found[f"{TO_Q}.weight"], expected[f"{TO_Q}.weight"]), key


@pytest.mark.parametrize("pattern", [".*attn1.*", "(to_q|to_k)", r"attn\d.to_q", "to_[qk]", ""])
def test_an_alpha_by_a_regular_expression_is_refused_not_passed_over(
    rig: Rig, pattern: str
) -> None:
    peft = as_peft(lora_file(rig.model, "lora", modules=[TO_Q], alpha=None), TO_Q)
    stated = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 2}})
    with pytest.raises(LoraLoadFailed, match="by the pattern"):
        parse_lora(save(peft, {"lora_adapter_metadata": stated}), rig.targets)


def test_of_several_patterns_the_first_counts(rig: Rig) -> None:
    peft = as_peft(lora_file(rig.model, "lora", modules=[TO_Q], alpha=None), TO_Q)
    expected = merged(rig, lora_file(rig.model, "lora", modules=[TO_Q], alpha=2.0))
    for others in ({"attn1.to_q": 7}, {TO_Q.removeprefix("unet."): 7}, {r"to_q$": 7}):
        stated = json.dumps({"unet.alpha_pattern": {"to_q": 2} | others})
        found = merged(rig, peft, {"lora_adapter_metadata": stated})
        assert torch.equal(found[f"{TO_Q}.weight"], expected[f"{TO_Q}.weight"]), others


def test_use_rslora_must_be_true_or_false(rig: Rig) -> None:
    peft = as_peft(lora_file(rig.model, "lora", modules=[TO_Q], alpha=None), TO_Q)
    stated = json.dumps({"unet.lora_alpha": 4, "unet.use_rslora": "yes"})
    with pytest.raises(LoraLoadFailed, match="use_rslora"):
        parse_lora(save(peft, {"lora_adapter_metadata": stated}), rig.targets)
