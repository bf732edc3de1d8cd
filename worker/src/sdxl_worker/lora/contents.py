"""A LoRA file's bytes in memory: looked at once, and its tensors as views of them.

Duty: header and bytes → the buffer that holds all tensors, its own or the file's; tensors and
single numbers of it; the largest value of all.
Must not know: which tensor is which part of what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sdxl_contract.lora.safetensors import (
    DTYPE_NAMES,
    SafetensorsHeader,
    load_failed,
    read_header,
    read_header_bytes,
    shown,
)

_DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in DTYPE_NAMES.items()}
# Kinds that hardly any operation knows → one that holds each of their values exactly.
_WIDER = {torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}

_CHUNK_BYTES = 1 << 23
_ALIGNED_BYTES = 8


@dataclass(frozen=True)
class Contents:
    """A file in memory.

    Attributes:
        buffer: all tensors' bytes.
        looks: the largest absolute value of each piece, on its way; none where dtypes differ.
    """

    header: SafetensorsHeader
    buffer: Tensor
    looks: list[Future[Tensor]]

    def largest(self) -> float | None:
        """The largest absolute value of all numbers, if they have one dtype and are finite."""
        if not self.looks:
            return None
        largest = float(torch.stack([look.result() for look in self.looks]).amax())
        return largest if math.isfinite(largest) else None


def read_bytes(
    data: bytes | bytearray | memoryview,
    header: SafetensorsHeader | None,
    beside: ThreadPoolExecutor,
    given_away: bool,
) -> Contents:
    """The file in `data`, in memory of its own unless that is given away.

    Args:
        header: the file's, if it was read before.

    Raises:
        LoraLoadFailed: it is no safetensors file.
    """
    view = memoryview(data).cast("B")
    header = header or read_header_bytes(view)
    body = view[header.data_start :]
    if given_away and not view.readonly and header.data_start % _ALIGNED_BYTES == 0:
        buffer = torch.frombuffer(body, dtype=torch.uint8)
        return _looked_at(header, buffer, beside, lambda part, start: len(part))

    def copy(part: memoryview, start: int) -> int:
        part[:] = body[start : start + len(part)]
        return len(part)

    return _looked_at(header, _own_memory(header), beside, copy)


def read_file(path: Path, size: int, beside: ThreadPoolExecutor) -> Contents:
    """The file of `size` bytes at `path`.

    Raises:
        LoraLoadFailed: it is no safetensors file.
    """
    # Not a map of the file: its bytes must not change after they were checked.
    with path.open("rb") as file:
        header = read_header(file, size)
        return _looked_at(header, _own_memory(header), beside, lambda part, _: file.readinto(part))


def _own_memory(header: SafetensorsHeader) -> Tensor:
    """Where the first tensor lies at an aligned address, whatever the header's length."""
    return torch.empty(header.size - header.data_start, dtype=torch.uint8)


def _looked_at(
    header: SafetensorsHeader,
    buffer: Tensor,
    beside: ThreadPoolExecutor,
    fill: Callable[[memoryview, int], int],
) -> Contents:
    """The file in `buffer`, each piece looked at while it is in the CPU's cache.

    Args:
        fill: writes a piece that begins at a byte of the data; how many bytes of it there were.
    """
    view = memoryview(buffer.numpy().data)
    dtype = _only_dtype(header, buffer.numel())
    looks: list[Future[Tensor]] = []
    for start in range(0, len(view), _CHUNK_BYTES):
        part = view[start : start + _CHUNK_BYTES]
        if fill(part, start) < len(part):
            raise load_failed("The file became shorter while it was read.", "truncated")
        if dtype is not None:
            piece = buffer[start : start + _CHUNK_BYTES]
            looks.append(beside.submit(largest_value, piece.view(dtype)))
    return Contents(header, buffer, looks)


def _only_dtype(header: SafetensorsHeader, size: int) -> torch.dtype | None:
    """The floating dtype of all tensors, alphas and strays included; None if they differ."""
    dtypes = {entry.dtype for entry in header.tensors.values()}
    dtype = _DTYPES.get(next(iter(dtypes)))
    if len(dtypes) > 1 or dtype is None or not dtype.is_floating_point or size % dtype.itemsize:
        return None
    if dtype in _WIDER:
        return None
    return dtype


class Typed(dict[torch.dtype, Tensor]):
    """One buffer of bytes as a row of each dtype that is asked for, as far as whole numbers go."""

    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self._buffer = buffer

    def __missing__(self, dtype: torch.dtype) -> Tensor:
        end = self._buffer.numel() // dtype.itemsize * dtype.itemsize
        self[dtype] = self._buffer[:end].view(dtype)
        return self[dtype]


class FileTensors:
    """A file's factors, as views of its bytes; those that cannot be are copies.

    Attributes:
        nbytes: memory that those which were asked for keep alive: mostly the file's bytes, once.
    """

    def __init__(self, header: SafetensorsHeader, buffer: Tensor) -> None:
        self._entries = header.tensors
        self._buffer = buffer
        self._whole = Typed(buffer)
        self.nbytes = 0
        self._has_views = False

    def __getitem__(self, key: str) -> Tensor:
        name, shape, start, end = self._entries[key]
        dtype = _DTYPES[name]
        if dtype in _WIDER or start % dtype.itemsize:
            part = self._buffer[start:end].clone()
            copy = part.view(dtype).to(_WIDER.get(dtype, dtype)).view(shape)
            self.nbytes += copy.nbytes
            return copy
        if not self._has_views:
            self._has_views = True
            self.nbytes += self._buffer.untyped_storage().nbytes()
        # One call a tensor instead of three: files have thousands of them.
        return self._whole[dtype].as_strided(shape, _strides(shape), start // dtype.itemsize)


def are_views(header: SafetensorsHeader, keys: Iterable[str]) -> bool:
    """Whether each of these tensors can be a view of the file's bytes: of a dtype that is used as
    it is, and at an address that is one of its own."""
    for key in keys:
        entry = header.tensors[key]
        dtype = _DTYPES[entry.dtype]
        if dtype in _WIDER or entry.start % dtype.itemsize:
            return False
    return True


def numbers_of(header: SafetensorsHeader, buffer: Tensor, keys: Iterable[str]) -> dict[str, float]:
    """The values of tensors that hold one number each, by key: one look for each dtype.

    Raises:
        LoraLoadFailed: one has a dtype that is no number's.
    """
    alike: dict[str, list[str]] = {}
    for key in keys:
        alike.setdefault(header.tensors[key].dtype, []).append(key)
    numbers: dict[str, float] = {}
    for name, some in alike.items():
        dtype = _DTYPES.get(name)
        if dtype is None:
            raise load_failed(f"'{shown(some[0])}' is {name}.", "dtype")
        starts = torch.tensor([header.tensors[key].start for key in some])
        # Byte by byte: they may lie at any address.
        found = buffer[starts[:, None] + torch.arange(dtype.itemsize)].view(dtype)
        numbers.update(zip(some, found.double().flatten().tolist(), strict=True))
    return numbers


@lru_cache(1024)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def largest_value(tensor: Tensor) -> Tensor:
    """The largest absolute value, in float32, of a tensor of floats; NaN if one is."""
    # NaN wins over every number.
    low, high = torch.aminmax(tensor)
    return torch.maximum(low.abs(), high.abs()).float()
