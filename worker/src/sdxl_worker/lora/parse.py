"""A LoRA file's bytes → checked factors in memory, ready to apply.

Duty: header and layout by `sdxl_contract` (the same rules by which the backend refuses a file at
upload), then the values: finite, α sane. The tensors are views of one buffer that nobody else can
change: the file's own bytes where the caller gives them away, else what they were read into.
Must not know: URLs, caches, requests.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from sdxl_contract.limits import LORA_MAX_BYTES
from sdxl_contract.lora.layout import MAX_ALPHA, LayerTensors, LoraLayout, lay_out
from sdxl_contract.lora.safetensors import (
    DTYPE_NAMES,
    SafetensorsHeader,
    load_failed,
    read_header,
    read_header_bytes,
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
_ALIGNED_BYTES = 8


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
        moved: dict[int, _Typed] = {}

        def there(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key not in moved:
                whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                moved[key] = _Typed(move(whole))
            # One call a tensor: files have thousands of them.
            return moved[key][tensor.dtype].as_strided(
                tensor.shape, tensor.stride(), tensor.storage_offset()
            )

        layers = {}
        for name, layer in self.layers.items():
            tensors = {slot: there(tensor) for slot, tensor in layer.tensors.items()}
            layers[name] = replace(layer, tensors=tensors)
        return replace(self, layers=layers)


def _to(device: torch.device | str, whole: Tensor) -> Tensor:
    return whole.to(device, non_blocking=True)


class _Typed(dict[torch.dtype, Tensor]):
    """One buffer of bytes as a row of each dtype that is asked for, as far as whole numbers go."""

    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self._buffer = buffer

    def __missing__(self, dtype: torch.dtype) -> Tensor:
        end = self._buffer.numel() // dtype.itemsize * dtype.itemsize
        self[dtype] = self._buffer[:end].view(dtype)
        return self[dtype]


def parse_lora(
    data: bytes | bytearray | memoryview | Path,
    targets: ModelTargets,
    *,
    sha256: str | None = None,
    given_away: bool = False,
) -> ParsedLora:
    """The LoRA in `data`, checked against `targets`.

    Args:
        data: the whole file, or a path; a path is read once and not looked at again.
        sha256: of the file, hex, if the caller has computed it already; else it is computed.
        given_away: nobody writes to `data` any more: its own memory is used, if it is writable and
            the tensors begin at a multiple of 8 bytes. For what is moved to a GPU next; on a CPU
            the bits of a product may depend on where in memory its factors lie.

    Raises:
        LoraLoadFailed: no safetensors file, no LoRA for this model, a layer that misfits, or a
            value that is not finite. Nothing of the model is touched.
    """
    size = data.stat().st_size if isinstance(data, Path) else memoryview(data).nbytes
    if size > LORA_MAX_BYTES:
        raise load_failed(
            f"The file is {size} bytes long; at most {LORA_MAX_BYTES} are read.", "too_large"
        )
    if sha256 is None:
        data = data.read_bytes() if isinstance(data, Path) else data
        sha256 = hashlib.sha256(data).hexdigest()
    # The values are looked at beside everything else.
    with ThreadPoolExecutor(1) as beside:
        contents = (
            _read_file(data, size, beside)
            if isinstance(data, Path)
            else _read(data, beside, given_away)
        )
        layout = lay_out(contents.header, targets.shapes, targets.key_map, "the loaded model")
        _check_biases(layout, targets)
        tensors = _tensors(contents.header, contents.buffer, layout)
        layers = _layers(layout, tensors, contents.largest(), targets)
    return ParsedLora(
        sha256=sha256.lower(),
        layers=layers,
        strays=tuple(layout.strays),
        format=layout.format,
        algorithm=layout.algorithm,
        rank=layout.rank,
        nbytes=_held_bytes(layers),
    )


@dataclass(frozen=True)
class _Contents:
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


def _read(
    data: bytes | bytearray | memoryview, beside: ThreadPoolExecutor, given_away: bool
) -> _Contents:
    view = memoryview(data).cast("B")
    header = read_header_bytes(view)
    body = view[header.data_start :]
    if given_away and not view.readonly and header.data_start % _ALIGNED_BYTES == 0:
        buffer = torch.frombuffer(body, dtype=torch.uint8)
        return _looked_at(header, buffer, beside, lambda part, start: len(part))

    def copy(part: memoryview, start: int) -> int:
        part[:] = body[start : start + len(part)]
        return len(part)

    return _looked_at(header, _own_memory(header), beside, copy)


def _read_file(path: Path, size: int, beside: ThreadPoolExecutor) -> _Contents:
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
) -> _Contents:
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
            looks.append(beside.submit(_extreme, piece.view(dtype)))
    return _Contents(header, buffer, looks)


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
    whole = _Typed(buffer)
    for layer in layout.layers.values():
        for key in layer.keys.values():
            name, shape, start, end = header.tensors[key]
            dtype = _DTYPES.get(name)
            if dtype is None:
                raise load_failed(f"'{shown(key)}' is {name}.", "dtype")
            if dtype in _WIDER or start % dtype.itemsize:
                part = buffer[start:end].clone()
                tensors[key] = part.view(dtype).to(_WIDER.get(dtype, dtype)).view(shape)
                continue
            # One call a tensor instead of three: files have thousands of them.
            tensors[key] = whole[dtype].as_strided(shape, _strides(shape), start // dtype.itemsize)
    return tensors


def _held_bytes(layers: dict[str, LayerDelta]) -> int:
    """Memory that the factors keep alive: mostly the file's buffer, once."""
    storages = {
        storage.data_ptr(): storage.nbytes()
        for layer in layers.values()
        for storage in (tensor.untyped_storage() for tensor in layer.tensors.values())
    }
    return sum(storages.values())


@lru_cache(1024)
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
