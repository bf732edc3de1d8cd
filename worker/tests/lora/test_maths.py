"""Merged weights against float64, by formulas written here a second time and another way."""

from __future__ import annotations

import math

import pytest
import torch

from sdxl_worker.lora import parse_lora
from testkit.loras.making import MAKERS, Rig, Tensors, kohya_stem, lora_file, save
from testkit.loras.oracle import MANTISSA, exact_change, ulps


def of_modules(tensors: Tensors) -> dict[str, Tensors]:
    """A file's tensors by the stem of their module, which has no dot, and what follows it."""
    modules: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        stem, _, part = key.partition(".")
        modules.setdefault(stem, {})[part] = tensor
    return modules


def worst_ulps(rig: Rig, files: list[tuple[Tensors, float]]) -> float:
    """The worst error over all weights after applying `files` with their scales."""
    loras = [(parse_lora(save(tensors), rig.targets), scale) for tensors, scale in files]
    live = {name: t.weight for name, t in rig.targets.modules.items()}
    before = {name: weight.detach().clone() for name, weight in live.items()}
    by_stem = [(of_modules(tensors), scale) for tensors, scale in files]
    worst = 0.0
    with rig.patcher.applied(loras):
        for name, weight in live.items():
            stem, old = kohya_stem(name), before[name]
            changed = [(modules[stem], scale) for modules, scale in by_stem if stem in modules]
            if not changed:
                assert torch.equal(weight, old), f"{name} is in none of the files"
                continue
            exact, floor = old.double(), old.double().abs()
            for parts, scale in changed:
                change = scale * exact_change(parts, old)
                exact, floor = exact + change, floor + change.abs()
            worst = max(worst, ulps(weight.detach(), exact, floor))
    assert rig.is_pristine()
    return worst


@pytest.mark.parametrize("algorithm", MAKERS)
def test_merged_weights_are_within_one_ulp_of_float64(any_rig: Rig, algorithm: str) -> None:
    files = [(lora_file(any_rig.model, algorithm, seed=3), 0.9)]
    assert worst_ulps(any_rig, files) <= 1


@pytest.mark.parametrize("factors", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_of_every_dtype_hold_one_ulp(any_rig: Rig, factors: torch.dtype) -> None:
    files = [(lora_file(any_rig.model, "lora", seed=4, rank=16, dtype=factors), 1.0)]
    assert worst_ulps(any_rig, files) <= 1


@pytest.mark.parametrize("alpha", [None, 0.5, 4.0, 16.0])
def test_alpha_over_rank_scales_the_change_and_a_missing_alpha_means_one(
    any_rig: Rig, alpha: float | None
) -> None:
    files = [(lora_file(any_rig.model, "lora", seed=5, rank=8, alpha=alpha), -0.7)]
    assert worst_ulps(any_rig, files) <= 1


def test_several_loras_of_different_kinds_and_scales_add_up(any_rig: Rig) -> None:
    kinds = [("lora", 0.8), ("lora", 0.35), ("lora", -0.5), ("loha", 1.1), ("dora-in", 0.6)]
    files = [
        (lora_file(any_rig.model, kind, seed=seed, share=0.6), scale)
        for seed, (kind, scale) in enumerate(kinds)
    ]
    assert worst_ulps(any_rig, files) <= 1


def test_all_ones_give_the_hand_computed_weight(any_rig: Rig) -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = any_rig.targets.modules[name].weight
    out, inner = weight.shape
    stem = kohya_stem(name)
    tensors = {
        f"{stem}.lora_down.weight": torch.ones(4, inner),
        f"{stem}.lora_up.weight": torch.ones(out, 4),
        f"{stem}.alpha": torch.tensor(2.0),
    }
    before = weight.detach().clone()
    # Four products of ones, times α / rank = 2 / 4, times the scale 0.5: every weight gains 1.
    with any_rig.patcher.applied([(parse_lora(save(tensors), any_rig.targets), 0.5)]):
        assert torch.equal(weight.detach(), (before.double() + 1).to(weight.dtype))


def test_norms_and_biases_take_plain_deltas(any_rig: Rig) -> None:
    norm = "unet.down_blocks.1.attentions.0.norm"
    conv = "unet.down_blocks.0.resnets.0.conv1"
    tensors = {
        f"{kohya_stem(norm)}.w_norm": torch.full((64,), 0.25),
        f"{kohya_stem(norm)}.b_norm": torch.full((64,), -0.5),
        f"{kohya_stem(conv)}.diff_b": torch.full((32,), 2.0),
    }
    lora = parse_lora(save(tensors), any_rig.targets)
    live = any_rig.targets.modules
    watched = [live[norm].weight, live[norm].bias, live[conv].bias]
    before = [tensor.detach().clone() for tensor in watched if tensor is not None]
    with any_rig.patcher.applied([(lora, 0.5)]) as swap:
        assert swap.tensors_written == 3
        for tensor, old, change in zip(watched, before, (0.125, -0.25, 1.0), strict=True):
            assert tensor is not None
            assert torch.equal(tensor.detach(), (old.double() + change).to(tensor.dtype))
    assert any_rig.is_pristine()


def test_a_dora_of_strength_zero_and_one_are_the_ends_of_a_line(any_rig: Rig) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    weight = any_rig.targets.modules[name].weight
    tensors = lora_file(any_rig.model, "dora-out", modules=[name])
    lora = parse_lora(save(tensors), any_rig.targets)
    with any_rig.patcher.applied([(lora, 1.0)]):
        length = weight.detach().double().pow(2).sum(1).sqrt()
        magnitude = tensors[f"{kohya_stem(name)}.dora_scale"].double().flatten()
        tolerance = 2.0 ** (1 - MANTISSA[any_rig.dtype])
        assert torch.allclose(length, magnitude, rtol=tolerance)
    assert any_rig.patcher.apply([(lora, 0.0)]).tensors_written == 0
    assert math.isfinite(float(weight.sum()))
    assert any_rig.is_pristine()
