"""A LoRA file's bytes → checked factors in memory, ready to apply.

Duty: header and layout by `sdxl_contract` (the same rules by which the backend refuses a file at
upload), then the values: finite, α sane. One read of the file into one buffer that nobody else
can change; the tensors are views of it.
Must not know: URLs, caches, requests.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdxl_contract.limits import LORA_MAX_BYTES
from sdxl_contract.lora.layout import MAX_ALPHA, LayerTensors, LoraLayout, lay_out
from sdxl_contract.lora.safetensors import (
    DTYPE_NAMES,
    SafetensorsHeader,
    load_failed,
    read_header,
    shown,
)
from sdxl_contract.lora.shapes import Algorithm
from sdxl_contract.lora.spelling import Slot
from sdxl_contract.result import LoraReport
from sdxl_worker.lora.keys import ModelTargets
from sdxl_worker.lora.layers import LayerDelta

_DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in DTYPE_NAMES.items()}
# Kinds that hardly any operation knows → one that holds each of their values exactly.
_WIDER = {torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}

_CHUNK_BYTES = 1 << 23


@dataclass(frozen=True)
class ParsedLora:
    """One file's factors. Immutable; may be applied any number of times at any scale, by whoever
    asks: nothing here came from a request.

    Attributes:
        sha256: of the whole file, hex; with the scale it identifies what was applied.
        layers: full module name → its change.
        strays: the file's keys that name no layer, skipped.
        nbytes: memory held, in bytes.
    """

    sha256: str
    layers: dict[str, LayerDelta]
    strays: tuple[str, ...]
    format: str
    algorithm: str
    rank: int
    nbytes: int

    @property
    def text_encoder(self) -> bool:
        """Whether a text encoder is changed, so that embeddings depend on this LoRA."""
        return any(not name.startswith("unet.") for name in self.layers)

    def report(self, scale: float, name: str | None = None) -> LoraReport:
        """This LoRA's entry in the result of a request that calls it `name`."""
        return LoraReport(
            sha256=self.sha256,
            name=name,
            scale=scale,
            format=self.format,
            algorithm=self.algorithm,
            rank=self.rank,
            modules_matched=len(self.layers),
            modules_unmatched=list(self.strays),
        )

    def to(
        self, device: torch.device | str, move: Callable[[Tensor], Tensor] | None = None
    ) -> ParsedLora:
        """The same factors on `device`; the file's buffer is moved as one block, by `move` if that
        is given: bytes in a row → the same on the device."""
        move = move or partial(_to, device)
        moved: dict[int, Tensor] = {}
        layers = {}
        for name, layer in self.layers.items():
            tensors = {slot: _moved(tensor, move, moved) for slot, tensor in layer.tensors.items()}
            layers[name] = replace(layer, tensors=tensors)
        return replace(self, layers=layers)


def _to(device: torch.device | str, whole: Tensor) -> Tensor:
    return whole.to(device, non_blocking=True)


def _moved(tensor: Tensor, move: Callable[[Tensor], Tensor], moved: dict[int, Tensor]) -> Tensor:
    storage = tensor.untyped_storage()
    key = storage.data_ptr()
    if key not in moved:
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        moved[key] = move(whole)
    start = tensor.storage_offset() * tensor.element_size()
    part = moved[key][start : start + tensor.numel() * tensor.element_size()]
    return part.view(tensor.dtype).view(tensor.shape)


def parse_lora(
    data: bytes | bytearray | memoryview | Path,
    targets: ModelTargets,
    *,
    sha256: str | None = None,
) -> ParsedLora:
    """The LoRA in `data`, checked against `targets`.

    Args:
        data: the whole file, or a path; a path is read once and not looked at again.
        sha256: of the file, hex, if the caller has computed it already; else it is computed.

    Raises:
        LoraLoadFailed: no safetensors file, no LoRA for this model, a layer that misfits, or a
            value that is not finite. Nothing of the model is touched.
    """
    contents = _read(data, with_hash=sha256 is None)
    layout = lay_out(contents.header, targets.shapes, targets.key_map, "the loaded model")
    _check_biases(layout, targets)
    tensors = _tensors(contents.header, contents.buffer, layout)
    layers = _layers(layout, tensors, contents.largest, targets)
    return ParsedLora(
        sha256=sha256.lower() if sha256 is not None else contents.sha256,
        layers=layers,
        strays=tuple(layout.strays),
        format=layout.format,
        algorithm=layout.algorithm,
        rank=layout.rank,
        nbytes=_held_bytes(layers),
    )


class _View:
    """Bytes in memory, read like a file without copying them first."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._rest = memoryview(data).cast("B")

    def read(self, count: int) -> bytes:
        part, self._rest = self._rest[:count], self._rest[count:]
        return bytes(part)

    def readinto(self, target: memoryview) -> int:
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Hashing:
    """A file that hashes what is read through it."""

    def __init__(self, file: Any, with_hash: bool) -> None:
        self._file = file
        self._digest = hashlib.sha256() if with_hash else None

    def read(self, count: int) -> bytes:
        part: bytes = self._file.read(count)
        if self._digest is not None:
            self._digest.update(part)
        return part

    def fill(self, view: memoryview) -> int:
        """Bytes read into `view`: fewer than its length only at the file's end."""
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                break
            done += count
        if self._digest is not None:
            self._digest.update(view[:done])
        return done

    def hexdigest(self) -> str:
        return "" if self._digest is None else self._digest.hexdigest()


@dataclass(frozen=True)
class _Contents:
    """A file read once. `largest` is the largest absolute value of all its numbers, where they
    have one dtype and are finite; `sha256` is "" unless it was asked for.
    """

    header: SafetensorsHeader
    buffer: Tensor
    largest: float | None
    sha256: str


def _read(data: bytes | bytearray | memoryview | Path, *, with_hash: bool) -> _Contents:
    if isinstance(data, Path):
        with data.open("rb") as file:
            return _read_stream(file, os.fstat(file.fileno()).st_size, with_hash)
    return _read_stream(_View(data), memoryview(data).nbytes, with_hash)


def _read_stream(file: Any, size: int, with_hash: bool) -> _Contents:
    if size > LORA_MAX_BYTES:
        raise load_failed(
            f"The file is {size} bytes long; at most {LORA_MAX_BYTES} are read.", "too_large"
        )
    stream = _Hashing(file, with_hash)
    header = read_header(stream, size)
    # Not a map of the file: its bytes must not change after they were checked. And a buffer of
    # its own puts the first tensor on an aligned address, whatever the header's length.
    buffer = torch.empty(size - header.data_start, dtype=torch.uint8)
    view = memoryview(buffer.numpy().data)
    dtype = _only_dtype(header, buffer.numel())
    looks: list[Future[Tensor]] = []
    # The values are looked at beside the reading, while they are still in the CPU's cache.
    with ThreadPoolExecutor(1) as beside:
        for start in range(0, len(view), _CHUNK_BYTES):
            part = slice(start, min(start + _CHUNK_BYTES, len(view)))
            if stream.fill(view[part]) < part.stop - part.start:
                raise load_failed("The file became shorter while it was read.", "truncated")
            if dtype is not None:
                looks.append(beside.submit(_extreme, buffer[part].view(dtype)))
    largest = float(torch.stack([look.result() for look in looks]).amax()) if looks else math.nan
    return _Contents(
        header, buffer, largest if math.isfinite(largest) else None, stream.hexdigest()
    )


def _only_dtype(header: SafetensorsHeader, size: int) -> torch.dtype | None:
    """The floating dtype of all tensors, alphas and strays included; None if they differ."""
    dtypes = {entry.dtype for entry in header.tensors.values()}
    dtype = _DTYPES.get(next(iter(dtypes)))
    if len(dtypes) > 1 or dtype is None or not dtype.is_floating_point or size % dtype.itemsize:
        return None
    if dtype in _WIDER:
        return None
    return dtype


def _check_biases(layout: LoraLayout, targets: ModelTargets) -> None:
    for name, layer in layout.layers.items():
        biased = Slot.DIFF_B in layer.keys or Slot.UP_BIAS in layer.keys
        if biased and targets.modules[name].bias is None:
            raise load_failed(
                f"The LoRA changes the bias of {name}, which has none.", "misfit", misfits=[name]
            )


def _tensors(header: SafetensorsHeader, buffer: Tensor, layout: LoraLayout) -> dict[str, Tensor]:
    """The layout's tensors by key, as views of `buffer`."""
    tensors = {}
    whole: dict[torch.dtype, Tensor] = {}
    for layer in layout.layers.values():
        for key in layer.keys.values():
            entry = header.tensors[key]
            dtype = _DTYPES.get(entry.dtype)
            if dtype is None:
                raise load_failed(f"'{shown(key)}' is {entry.dtype}.", "dtype")
            if dtype in _WIDER or entry.start % dtype.itemsize:
                part = buffer[entry.start : entry.end].clone()
                tensors[key] = part.view(dtype).to(_WIDER.get(dtype, dtype)).view(entry.shape)
                continue
            if dtype not in whole:
                whole[dtype] = buffer[: buffer.numel() // dtype.itemsize * dtype.itemsize].view(
                    dtype
                )
            # One call a tensor instead of three: files have thousands of them.
            tensors[key] = whole[dtype].as_strided(
                entry.shape, _strides(entry.shape), entry.start // dtype.itemsize
            )
    return tensors


def _held_bytes(layers: dict[str, LayerDelta]) -> int:
    """Memory that the factors keep alive: mostly the file's buffer, once."""
    storages = {
        storage.data_ptr(): storage.nbytes()
        for layer in layers.values()
        for storage in (tensor.untyped_storage() for tensor in layer.tensors.values())
    }
    return sum(storages.values())


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _layers(
    layout: LoraLayout,
    tensors: dict[str, Tensor],
    largest_of_all: float | None,
    targets: ModelTargets,
) -> dict[str, LayerDelta]:
    factors = {
        key: tensors[key]
        for layer in layout.layers.values()
        for slot, key in layer.keys.items()
        if slot is not Slot.ALPHA
    }
    if largest_of_all is None:
        # Several dtypes; or a value that is not finite, which may be a stray's or an unused α's.
        largest = _largest_of_each(factors)
    else:
        largest = dict.fromkeys(factors, largest_of_all)
    layers = {}
    for name, layer in layout.layers.items():
        factor = _factor(name, layer, tensors)
        by_slot = {slot: tensors[key] for slot, key in layer.keys.items()}
        by_slot.pop(Slot.ALPHA, None)
        scalar = by_slot.pop(Slot.SCALAR, None)
        if scalar is not None:
            factor *= float(scalar.item())
        layers[name] = LayerDelta(
            name=name,
            weight_shape=targets.shapes[name],
            plan=layer.plan,
            tensors=by_slot,
            factor=factor,
            bound=_bound(layer, largest, factor),
        )
    return layers


def _largest_of_each(factors: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute value of each tensor; refuses NaN and infinity."""
    largest: dict[str, float] = {}
    for key, tensor in factors.items():
        largest[key] = float(_extreme(tensor))
        if not math.isfinite(largest[key]):
            raise load_failed(f"'{shown(key)}' holds NaN or infinity.", "not_finite")
    return largest


def _extreme(tensor: Tensor) -> Tensor:
    # NaN wins over every number.
    low, high = torch.aminmax(tensor)
    return torch.maximum(low.abs(), high.abs()).float()


def _factor(name: str, layer: LayerTensors, tensors: dict[str, Tensor]) -> float:
    """α / rank; 1 without an α, and where nothing is low-rank (LyCORIS ignores α there)."""
    if layer.plan.rank == 0 or layer.plan.algorithm in (Algorithm.FULL, Algorithm.BIAS):
        return 1.0
    alpha = layer.file_alpha
    if Slot.ALPHA in layer.keys:
        alpha = float(tensors[layer.keys[Slot.ALPHA]].item())
    if alpha is None:
        return 1.0
    if not math.isfinite(alpha) or abs(alpha) > MAX_ALPHA:
        raise load_failed(
            f"The α of {name} is {alpha}; it must be finite and at most {MAX_ALPHA:.0f}.", "alpha"
        )
    return alpha / layer.plan.rank


def _bound(layer: LayerTensors, largest: dict[str, float], factor: float) -> float:
    """No element of a plain LoRA's ΔW is larger than r·max|up|·max|down|·|α/r|."""
    if layer.plan.algorithm is not Algorithm.LORA or layer.plan.dora is not None:
        return math.inf
    up, down = largest[layer.keys[Slot.UP]], largest[layer.keys[Slot.DOWN]]
    return layer.plan.rank * up * down * abs(factor)
