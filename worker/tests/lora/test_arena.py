"""Weights in one block: the same values, put back and compared in a few operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdxl_worker.lora import LoraPatcher, ModelCorrupted, parse_lora
from sdxl_worker.lora.arena import Arena, fits_arena
from testkit.loras.making import TinyModel, lora_file, save, tiny_model

pytestmark = pytest.mark.process


def parsed(model: TinyModel, targets: Any) -> Any:
    names = [name for name in targets.shapes if name.endswith(("attn1.to_q", "ff.net.2"))]
    return parse_lora(save(lora_file(model, "lora", modules=names)), targets)


def values(targets: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in targets.tensors()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_weights_in_one_block_keep_their_values_types_and_strides() -> None:
    model = tiny_model()
    model.unet.to(memory_format=torch.channels_last)
    targets = model.targets()
    before = {n: (p.dtype, p.shape, p.stride(), p.detach().clone()) for n, p in targets.patchable()}
    assert fits_arena(parameter for _, parameter in targets.patchable())
    arena = Arena(targets.patchable())

    for name, parameter in targets.patchable():
        dtype, shape, stride, value = before[name]
        assert (parameter.dtype, parameter.shape, parameter.stride()) == (dtype, shape, stride)
        assert torch.equal(parameter.detach(), value)
        assert torch.equal(arena.pristine[name], value)
        assert parameter.data_ptr() % 64 == 0
    assert arena.is_pristine()


def test_a_single_changed_bit_anywhere_in_the_block_is_seen_and_put_back() -> None:
    model = tiny_model()
    targets = model.targets()
    arena = Arena(targets.patchable())
    names = [name for name, _ in targets.patchable()]
    for name in (names[0], names[len(names) // 2], names[-1]):
        bits = dict(targets.patchable())[name].detach().view(torch.int16).view(-1)
        bits[-1] ^= 1
        assert not arena.is_pristine()
        assert arena.restore()


def test_a_block_that_cannot_be_put_back_ends_the_service() -> None:
    model = tiny_model()
    targets = model.targets()
    patcher = LoraPatcher(targets, one_block=True)
    assert patcher._arena is not None
    patcher.apply([(parsed(model, targets), 1.0)])
    patcher._arena.is_pristine = lambda: False  # type: ignore[method-assign]
    with pytest.raises(ModelCorrupted):
        patcher.restore()
    with pytest.raises(ModelCorrupted):
        patcher.apply([])


def test_parameters_that_share_memory_or_have_gaps_stay_where_they_are() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    assert fits_arena([weight])
    assert not fits_arena([weight, torch.nn.Parameter(weight.detach())])
    assert not fits_arena([torch.nn.Parameter(torch.zeros(4, 8)[:, ::2])])
    assert not fits_arena([])
