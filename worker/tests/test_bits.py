"""Comparison and checksums see every bit, whatever the memory's order."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from sdxl_worker import bits
from sdxl_worker.bits import (
    as_bits,
    copy_checked,
    fingerprint,
    first_difference,
    same_bits,
)


def some_tensors() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(64, 200).bfloat16(),
        torch.randn(3, 5, 7, 7).to(memory_format=torch.channels_last),
        torch.randn(5).half(),
        torch.randn(100, 90).double(),
        torch.arange(77).expand(1, -1),
        torch.tensor(3),
        torch.tensor([True, False, True]),
        torch.randn(41, 30).t(),
    ]


@pytest.mark.parametrize("index", range(8))
def test_one_flipped_bit_anywhere_is_seen(index: int) -> None:
    tensor = some_tensors()[index]
    other = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
    assert same_bits(tensor, other)
    assert fingerprint(tensor) == fingerprint(other)
    raw = as_bits(other).view(torch.uint8)
    for position in {0, raw.numel() // 2, raw.numel() - 1}:
        raw[position] ^= 1
        assert not same_bits(tensor, other)
        assert fingerprint(tensor) != fingerprint(other)
        assert first_difference([("x", tensor, tensor), ("y", tensor, other)]) == "y"
        raw[position] ^= 1
    assert first_difference([("x", tensor, other)]) is None


def test_zeros_of_both_signs_and_nans_are_told_apart() -> None:
    zero, minus = torch.zeros(16), -torch.zeros(16)
    assert torch.equal(zero, minus)
    assert not same_bits(zero, minus)
    nan = torch.full((16,), float("nan"))
    assert same_bits(nan, nan.clone())


def test_two_elements_that_change_places_are_seen() -> None:
    tensor = torch.randn(512, 1280).bfloat16()
    swapped = tensor.clone()
    swapped[[3, 4]] = tensor[[4, 3]]
    assert fingerprint(swapped) != fingerprint(tensor)


def test_many_checksums_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in groups of any size, as on a GPU."""
    tensors = [*some_tensors(), torch.randn(300, 1000), torch.zeros(5000, dtype=torch.uint8)]
    alone = [fingerprint(tensor) for tensor in tensors]
    assert list(bits.fingerprints(tensors)) == alone
    assert list(bits.fingerprints([])) == []

    gathered: list[int] = []
    digests = bits._digests

    def noted(described: list[str], sums: list[torch.Tensor]) -> Any:
        gathered.append(len(sums))
        return digests(described, sums)

    monkeypatch.setattr(bits, "_digests", noted)
    assert list(bits.fingerprints(tensors)) == alone
    assert max(gathered) == 1  # a CPU is not waited for
    monkeypatch.setattr(bits, "_GATHERED", {"cpu"})
    for size in (1, 100_000, 1 << 30):
        monkeypatch.setattr(bits, "_SUMS_BYTES", size)
        gathered.clear()
        assert list(bits.fingerprints(tensors)) == alone
        assert sum(gathered) == len(tensors)
        assert (max(gathered) == 1) is (size == 1)
        assert (len(gathered) == 1) is (size == 1 << 30)


def test_the_bits_are_a_view_not_a_copy() -> None:
    tensor = torch.zeros(8, 8).bfloat16()
    as_bits(tensor)[0] = 1
    assert tensor.view(torch.int16)[0, 0] == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_checked_copy_copies_every_bit_of_every_layout(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sources = [*some_tensors(), torch.randn(300, 1000), torch.empty(0)]
        # An expanded view is read, not written: its target is a tensor of its own.
        targets = [torch.zeros_like(source) for source in sources]
        pairs = list(zip(map(str, range(10)), targets, sources, strict=True))
        assert copy_checked(pairs) is None
        assert all(same_bits(to, source) for to, source in zip(targets, sources, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_copy_that_did_not_arrive_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: memory that keeps one old byte, at the end of a late piece."""
    source = torch.randn(300, 1000)
    pairs = [("x", torch.zeros(5), torch.ones(5)), ("y", torch.zeros_like(source), source)]
    move = ctypes.memmove

    def forgetful(to: int, origin: int, count: int) -> None:
        last = 300 * 1000 * 4 - (300 * 1000 * 4 // (1 << 18)) * (1 << 18)
        move(to, origin, count - 1 if count == last else count)

    monkeypatch.setattr(ctypes, "memmove", forgetful)
    assert copy_checked(pairs) == "y"


def test_without_the_c_library_the_copy_is_checked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bits, "_MEMCMP", None)
    target, source = torch.zeros(9), torch.randn(9)
    assert copy_checked([("x", target, source)]) is None
    assert torch.equal(target, source)
