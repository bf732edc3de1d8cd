"""Tensors as bits: exact comparison and fast checksums, on CPU and GPU.

Duty: whether two tensors hold the same bits (NaN payloads and the sign of zero included), and a
short fingerprint of one.
Must not know: models, LoRAs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

# Columns of the checksum. A prime: elements that change places by any round distance, such as a
# row of a weight or a power of two, land in another column and are seen.
_WIDTH = 4093
_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor as one row of integers, as wide as its size allows; a view."""
    tensor = tensor.detach()
    if not _is_dense(tensor):
        tensor = tensor.contiguous()
    flat = torch.as_strided(tensor, (tensor.numel(),), (1,), tensor.storage_offset())
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    flat = flat.view(_BY_SIZE[flat.element_size()])
    wide = flat.numel() * flat.element_size() % 8 == 0
    aligned = flat.storage_offset() * flat.element_size() % 8 == 0
    return flat.view(torch.int64) if wide and aligned else flat


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap, in any order of axes."""
    sides = sorted(
        (stride, size)
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        if size != 1
    )
    expected = 1
    for stride, size in sides:
        if stride != expected:
            return False
        expected *= size
    return True


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether `a` and `b` (one shape, one stride) hold the same bits; waits for the device."""
    return bool(torch.equal(as_bits(a), as_bits(b).to(a.device)))


def first_difference(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> str | None:
    """Name of the first pair whose bits differ, or None.

    GPU pairs are compared without waiting for each: one flag is read at the end.
    """
    flags: dict[torch.device, Tensor] = {}
    on_gpu: list[tuple[str, Tensor, Tensor]] = []
    for name, a, b in pairs:
        if a.device.type == "cpu":
            if not same_bits(a, b):
                return name
            continue
        differs = (as_bits(a) != as_bits(b).to(a.device, non_blocking=True)).any()
        flags[a.device] = differs | flags[a.device] if a.device in flags else differs
        on_gpu.append((name, a, b))
    if any(bool(flag) for flag in flags.values()):
        return next((name for name, a, b in on_gpu if not same_bits(a, b)), on_gpu[0][0])
    return None


def fingerprint(tensor: Tensor) -> bytes:
    """16 bytes that change with any changed element; a checksum, not a cryptographic hash.

    Column sums modulo 2^64, hashed with dtype, shape and strides: memory speed, where a
    cryptographic hash of a 5 GB model would take seconds of every start.
    """
    bits = as_bits(tensor)
    described = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}"
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    whole = bits.numel() // _WIDTH * _WIDTH
    sums = bits[:whole].view(-1, _WIDTH).sum(0, dtype=torch.int64)
    digest.update(sums.cpu().numpy().tobytes())
    digest.update(bits[whole:].cpu().numpy().tobytes())
    return digest.digest()
