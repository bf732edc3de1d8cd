"""Merged weights against float64, by formulas written here a second time and another way."""

from __future__ import annotations

import math

import pytest
import torch
from lora_testkit import MAKERS, Rig, Tensors, kohya_stem, lora_file, save
from torch import Tensor

from sdxl_worker.lora import parse_lora

MANTISSA = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
SMALLEST = {torch.bfloat16: -133, torch.float16: -24, torch.float32: -149}


def exact_change(parts: Tensors, weight: Tensor) -> Tensor:
    """ΔW in float64 at strength 1, element formulas spelled out; `weight` is W0."""
    p = {name: tensor.double() for name, tensor in parts.items()}
    w0 = weight.double()
    out, inner = weight.shape[:2]
    kernel = weight.shape[2:]
    rank = 0
    if "lora_mid.weight" in p:
        up, down = p["lora_up.weight"].flatten(1), p["lora_down.weight"].flatten(1)
        rank = down.shape[0]
        delta = sum(
            p["lora_mid.weight"][m, n][None, None] * torch.outer(up[:, m], down[n])[..., None, None]
            for m in range(rank)
            for n in range(rank)
        )
    elif "lora_down.weight" in p:
        rank = p["lora_down.weight"].shape[0]
        delta = (p["lora_up.weight"].flatten(1) @ p["lora_down.weight"].flatten(1)).reshape(
            w0.shape
        )
    elif "hada_w1_a" in p:
        rank = p["hada_w1_b"].shape[0]
        halves = []
        for half in "12":
            a, b = p[f"hada_w{half}_a"], p[f"hada_w{half}_b"]
            if f"hada_t{half}" in p:
                core = p[f"hada_t{half}"].permute(2, 3, 0, 1)
                halves.append((a.T @ core @ b).permute(2, 3, 0, 1))
            else:
                halves.append((a @ b).reshape(w0.shape))
        delta = halves[0] * halves[1]
    elif "lokr_w1" in p or "lokr_w1_a" in p:
        w1 = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
        rank = p["lokr_w1_b"].shape[0] if "lokr_w1_b" in p else 0
        rows, columns = out // w1.shape[0], inner // w1.shape[1]
        if "lokr_w2" in p:
            w2 = p["lokr_w2"]
        elif "lokr_t2" in p:
            rank = p["lokr_w2_b"].shape[0]
            core = p["lokr_t2"].permute(2, 3, 0, 1)
            w2 = (p["lokr_w2_a"].T @ core @ p["lokr_w2_b"]).permute(2, 3, 0, 1)
        else:
            rank = p["lokr_w2_b"].shape[0]
            w2 = p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)
        w2 = w2.reshape(rows, columns, *kernel)
        delta = torch.empty(w0.shape, dtype=torch.float64)
        for i in range(w1.shape[0]):
            for j in range(w1.shape[1]):
                delta[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = w1[i, j] * w2
    else:
        delta = p["diff"]
    if rank and "alpha" in p:
        delta = delta * (float(p["alpha"]) / rank)
    if "dora_scale" in p:
        changed = w0 + delta
        dims = [d for d in range(w0.dim()) if p["dora_scale"].shape[d] == 1]
        delta = p["dora_scale"] * changed / changed.pow(2).sum(dims, keepdim=True).sqrt() - w0
    return delta


def ulps(found: Tensor, exact: Tensor, floor: Tensor) -> float:
    """Largest error in units of the last place of the exact result.

    Where W0 and the change cancel each other to less than a thousandth of themselves, the
    unit is that of `floor`: no sum in float32 can be relatively exact there.
    """
    size = torch.maximum(exact.abs(), floor * 1e-3)
    exponent = torch.frexp(size)[1] - MANTISSA[found.dtype]
    unit = torch.ldexp(torch.ones_like(exact), exponent.clamp_min(SMALLEST[found.dtype]))
    return float(((found.double() - exact).abs() / unit).max())


def worst_ulps(rig: Rig, files: list[tuple[Tensors, float]]) -> float:
    """The worst error over all weights after applying `files` with their scales."""
    loras = [(parse_lora(save(tensors), rig.targets), scale) for tensors, scale in files]
    live = {name: t.weight for name, t in rig.targets.modules.items()}
    before = {name: weight.detach().clone() for name, weight in live.items()}
    worst = 0.0
    with rig.patcher.applied(loras):
        for name, weight in live.items():
            stem = kohya_stem(name)
            exact, floor = before[name].double(), before[name].double().abs()
            for tensors, scale in files:
                parts = {
                    key.removeprefix(f"{stem}."): tensor
                    for key, tensor in tensors.items()
                    if key.startswith(f"{stem}.")
                }
                if parts:
                    change = scale * exact_change(parts, before[name])
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
