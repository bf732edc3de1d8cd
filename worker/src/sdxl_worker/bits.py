"""Tensors as bits: exact comparison and fast checksums, on CPU and GPU.

Duty: whether two tensors hold the same bits (NaN payloads and the sign of zero included), and a
short fingerprint of one.
Must not know: models, LoRAs.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# Columns of the checksum. A prime: elements that change places by any round distance, such as a
# row of a weight or a power of two, land in another column and are seen.
_WIDTH = 4093
# Copied and compared piece by piece: small enough to be in a core's own cache the second time.
_PIECE_BYTES = 1 << 18
_COPY_THREADS_MAX = 4
# Of checksums that a device has ready before they are looked at: those of hundreds of tensors. To
# wait for a CPU costs nothing.
_GATHERED = {"cuda"}
_SUMS_BYTES = 16 << 20
_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor as one row of integers, as wide as its size allows; a view."""
    tensor = tensor.detach()
    if not is_dense(tensor):
        tensor = tensor.contiguous()
    flat = torch.as_strided(tensor, (tensor.numel(),), (1,), tensor.storage_offset())
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    flat = flat.view(_BY_SIZE[flat.element_size()])
    wide = flat.numel() * flat.element_size() % 8 == 0
    aligned = flat.storage_offset() * flat.element_size() % 8 == 0
    return flat.view(torch.int64) if wide and aligned else flat


def is_dense(tensor: Tensor) -> bool:
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


def copy_checked(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> str | None:
    """Copy each pair's second tensor over its first and compare the bits.

    On the CPU each piece is compared right after it was copied, while the processor still holds it,
    which takes little more than the copying: a second pass over gigabytes takes as long as the
    first. Pairs of which one is elsewhere are all copied, then all compared.

    Returns:
        Name of a pair whose bits differ all the same, or None. All pairs are copied either way.
    """
    here: list[tuple[str, Tensor, Tensor]] = []
    elsewhere: list[tuple[str, Tensor, Tensor]] = []
    for name, to, source in pairs:
        on_cpu = to.device.type == source.device.type == "cpu"
        (here if on_cpu else elsewhere).append((name, to, source))
    with torch.no_grad():
        for _, to, source in elsewhere:
            to.copy_(source)
    threads = min(_COPY_THREADS_MAX, torch.get_num_threads())
    if threads == 1 or len(here) < threads:
        found = [_copy_one(*one) for one in here]
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="copy") as pool:
            found = list(pool.map(lambda one: _copy_one(*one), here))
    different = next((name for name in found if name is not None), None)
    return different or first_difference(elsewhere)


def _copy_one(name: str, to: Tensor, source: Tensor) -> str | None:
    if _MEMCMP is None or not (is_dense(to) and to.stride() == source.stride()):
        with torch.no_grad():
            to.copy_(source)
        return None if same_bits(to, source) else name
    same = True
    there, here = to.data_ptr(), source.data_ptr()
    for place in range(0, to.nbytes, _PIECE_BYTES):
        count = min(_PIECE_BYTES, to.nbytes - place)
        ctypes.memmove(there + place, here + place, count)
        same &= _MEMCMP(there + place, here + place, count) == 0
    return None if same else name


def _find_memcmp() -> Callable[[int, int, int], int] | None:
    """The C library's, which gives up the interpreter's lock; None where there is none to find."""
    try:
        memcmp = ctypes.CDLL(None).memcmp
    except (OSError, TypeError, AttributeError):
        return None
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    memcmp.restype = ctypes.c_int
    found: Callable[[int, int, int], int] = memcmp
    return found


_MEMCMP = _find_memcmp()


def fingerprint(tensor: Tensor) -> bytes:
    """16 bytes that change with any changed element; a checksum, not a cryptographic hash.

    Column sums modulo 2^64, hashed with dtype, shape and strides: memory speed, where a
    cryptographic hash of a 5 GB model would take seconds of every start.
    """
    return next(fingerprints([tensor]))


def fingerprints(tensors: Iterable[Tensor]) -> Iterator[bytes]:
    """`fingerprint` of each, in order; a GPU is waited for once for hundreds of them."""
    described: list[str] = []
    sums: list[Tensor] = []
    held = 0
    for tensor in tensors:
        one = _sums(tensor)
        together = one.device.type in _GATHERED and sums and one.device == sums[0].device
        if sums and not (together and held < _SUMS_BYTES):
            yield from _digests(described, sums)
            described, sums, held = [], [], 0
        described.append(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}")
        sums.append(one)
        held += len(one)
    yield from _digests(described, sums)


def _sums(tensor: Tensor) -> Tensor:
    """As bytes: column sums, and what is left of the last row."""
    bits = as_bits(tensor)
    whole = bits.numel() // _WIDTH * _WIDTH
    sums = bits[:whole].view(-1, _WIDTH).sum(0, dtype=torch.int64)
    return torch.cat([sums.view(torch.uint8), bits[whole:].view(torch.uint8)])


def _digests(described: list[str], sums: list[Tensor]) -> Iterator[bytes]:
    if not sums:
        return
    data, start = memoryview(torch.cat(sums).cpu().numpy().data), 0
    for words, one in zip(described, sums, strict=True):
        digest = hashlib.blake2b(words.encode(), digest_size=16)
        digest.update(data[start : start + len(one)])
        start += len(one)
        yield digest.digest()
