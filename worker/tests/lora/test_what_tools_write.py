"""What trainers and tools really write: wide ranks, 8 and 64 bits, leftovers, embeddings."""

from __future__ import annotations

import json

import pytest
import torch

from sdxl_contract.errors import LoraLoadFailed
from sdxl_worker.lora import ParsedLora, parse_lora
from testkit.loras.making import Rig, Tensors, kohya_stem, lora_file, save

TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FEED = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
TOKENS = "text_encoder.text_model.embeddings.token_embedding"
POSITIONS = "text_encoder_2.text_model.embeddings.position_embedding"


def parsed(rig: Rig, tensors: Tensors) -> ParsedLora:
    return parse_lora(save(tensors), rig.targets)


def weight(rig: Rig, module: str, *files: Tensors, scale: float = 1.0) -> torch.Tensor:
    """A weight with these files applied."""
    with rig.patcher.applied([(parsed(rig, tensors), scale) for tensors in files]):
        found = rig.targets.modules[module].weight.detach().clone()
    assert rig.is_pristine()
    return found


def pair(module: str, out: int, inner: int, rank: int, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{kohya_stem(module)}.lora_down.weight": torch.randn(rank, inner, generator=generator),
        f"{kohya_stem(module)}.lora_up.weight": torch.randn(out, rank, generator=generator) * 0.1,
    }


def test_loras_joined_along_the_rank_give_what_they_give_together(any_rig: Rig) -> None:
    out, inner = any_rig.targets.shapes[TO_Q]
    one, two = (pair(TO_Q, out, inner, out - 1, seed) for seed in (1, 2))
    down, up = one
    joined = {down: torch.cat([one[down], two[down]]), up: torch.cat([one[up], two[up]], dim=1)}

    assert joined[down].shape[0] > max(out, inner)
    together = weight(any_rig, TO_Q, one, two)
    torch.testing.assert_close(weight(any_rig, TO_Q, joined), together, rtol=8e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_factors_of_8_and_64_bits_are_read_exactly(any_rig: Rig, dtype: torch.dtype) -> None:
    out, inner = any_rig.targets.shapes[TO_Q]
    made = {name: tensor.to(dtype) for name, tensor in pair(TO_Q, out, inner, 4, 3).items()}
    wide = {name: tensor.double() for name, tensor in made.items()}
    (down, up), base = wide.values(), any_rig.patcher.pristine(TO_Q).double()
    exact = (base + up @ down).to(any_rig.dtype)

    found = weight(any_rig, TO_Q, made)
    unit = torch.finfo(any_rig.dtype).eps * exact.double().abs().clamp(min=1e-3)
    assert ((found.double() - exact.double()).abs() <= unit).all()
    lora = parsed(any_rig, made)
    assert lora.nbytes >= sum(tensor.numel() * tensor.itemsize for tensor in made.values())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_what_is_not_finite_is_refused_in_every_kind(rig: Rig, dtype: torch.dtype) -> None:
    out, inner = rig.targets.shapes[TO_Q]
    made = pair(TO_Q, out, inner, 4, 3)
    made[next(iter(made))][0, 0] = float("nan")
    with pytest.raises(LoraLoadFailed, match="NaN"):
        parsed(rig, {name: tensor.to(dtype) for name, tensor in made.items()})


@pytest.mark.parametrize("module", [TO_Q, "unet.nowhere.at.all", FEED])
def test_an_alpha_that_was_left_behind_is_named_and_changes_nothing(rig: Rig, module: str) -> None:
    good = lora_file(rig.model, "lora", modules=["unet.conv_in"])
    left = f"{kohya_stem(module)}.alpha"
    lora = parsed(rig, good | {left: torch.tensor(4.0)})

    assert lora.strays == (left,)
    assert set(lora.layers) == {"unet.conv_in"}


@pytest.mark.parametrize("module", [TOKENS, POSITIONS])
def test_a_change_of_clip_s_embeddings_is_applied_and_taken_back(rig: Rig, module: str) -> None:
    rows, columns = rig.targets.shapes[module]
    root, _, rest = module.partition(".")
    clip = "clip_l" if root == "text_encoder" else "clip_g"
    stem = f"text_encoders.{clip}.transformer.{rest}"
    made = pair(module, rows, columns, 4, 5)
    down, up = made.values()
    spelled = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}

    exact = rig.patcher.pristine(module).double() + up.double() @ down.double()
    torch.testing.assert_close(weight(rig, module, spelled).double(), exact, rtol=8e-3, atol=1e-4)
    whole = {f"{stem}.diff": torch.ones(rows, columns) * 0.5}
    torch.testing.assert_close(
        weight(rig, module, whole).double(),
        rig.patcher.pristine(module).double() + 0.5,
        rtol=8e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_the_first_encoder_s_projection_that_sdxl_never_uses_is_a_stray(
    rig: Rig, size: float
) -> None:
    good = lora_file(rig.model, "lora", modules=[FEED])
    stem = "text_encoders.clip_l.transformer.text_projection"
    idle = {f"{stem}.lora_up.weight": torch.ones(32, 4) * size,
            f"{stem}.lora_down.weight": torch.ones(4, 32)}  # fmt: skip
    lora = parsed(rig, good | idle)

    assert set(lora.strays) == set(idle)
    assert torch.equal(weight(rig, FEED, good | idle), weight(rig, FEED, good))
    # The second encoder's is a layer like any other.
    second = {key.replace("clip_l", "clip_g"): tensor for key, tensor in idle.items()}
    with pytest.raises(LoraLoadFailed):
        parsed(rig, second | {f"{stem.replace('clip_l', 'clip_g')}.dora_scale": torch.ones(7)})


def test_a_header_of_every_caption_s_tags_is_read(rig: Rig) -> None:
    tags = {"1_set": {f"a caption that was written by hand number {n}": 1 for n in range(180_000)}}
    good = lora_file(rig.model, "lora", modules=[TO_Q])
    data = save(good, {"ss_tag_frequency": json.dumps(tags)})

    assert int.from_bytes(data[:8], "little") > 8 << 20
    assert set(parse_lora(data, rig.targets).layers) == {TO_Q}
