"""A LoRA file's bytes → checked factors in memory, ready to apply.

Duty: header and layout by `sdxl_contract` (the same rules by which the backend refuses a file at
upload), then the values: finite, α sane. The tensors are views of one buffer that nobody else can
change: the file's own bytes where the caller gives them away, else what they were read into.
Must not know: URLs, caches, requests.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from sdxl_contract.limits import LORA_MAX_BYTES
from sdxl_contract.lora.layout import MAX_ALPHA, LayerTensors, LoraLayout, lay_out
from sdxl_contract.lora.safetensors import (
    SafetensorsHeader,
    load_failed,
    read_header,
    shown,
)
from sdxl_contract.lora.shapes import Algorithm
from sdxl_contract.lora.spelling import Slot
from sdxl_contract.result import LoraReport
from sdxl_worker.lora.contents import (
    Contents,
    FileTensors,
    Typed,
    are_views,
    largest_value,
    numbers_of,
    read_bytes,
    read_file,
)
from sdxl_worker.lora.keys import ModelTargets
from sdxl_worker.lora.layers import LayerDelta

# What is one number, and all else.
_NUMBERS = frozenset({Slot.ALPHA, Slot.SCALAR})
_VALUES = frozenset(Slot) - _NUMBERS


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
        moved: dict[int, Typed] = {}

        def there(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key not in moved:
                whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                moved[key] = Typed(move(whole))
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


def lay_out_file(beginning: bytes | memoryview, size: int, targets: ModelTargets) -> LoraLayout:
    """How a file of `size` bytes changes the model, by its header alone.

    Args:
        beginning: what the file begins with, its header at least.

    Raises:
        LoraLoadFailed: as `parse_lora`, but for the values.
    """
    return _fitted(read_header(BytesIO(beginning), size), targets)


def parse_lora(
    data: bytes | bytearray | memoryview | Path,
    targets: ModelTargets,
    *,
    sha256: str | None = None,
    given_away: bool = False,
    layout: LoraLayout | None = None,
    elsewhere: Callable[[Tensor], Tensor] | None = None,
) -> ParsedLora:
    """The LoRA in `data`, checked against `targets`.

    Args:
        data: the whole file, or a path; a path is read once and not looked at again.
        sha256: of the file, hex, if the caller has computed it already; else it is computed.
        given_away: nobody writes to `data` any more: its own memory is used, if it is writable and
            the tensors begin at a multiple of 8 bytes. For what is moved to a GPU next; on a CPU
            the bits of a product may depend on where in memory its factors lie.
        layout: of this file, by `lay_out_file`, if the caller has it already.
        elsewhere: bytes in a row, all of the file's tensors → the same there, of which the LoRA is
            made then, or they themselves. Not called where a tensor has to be converted.

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
            read_file(data, size, beside)
            if isinstance(data, Path)
            else read_bytes(data, None if layout is None else layout.header, beside, given_away)
        )
        header, buffer = contents.header, contents.buffer
        layout = layout or _fitted(header, targets)
        numbers = numbers_of(header, buffer, _keys(layout, without=_VALUES))
        largest = _largest(layout, contents)
    if elsewhere is not None and are_views(header, _keys(layout, without=_NUMBERS)):
        buffer = elsewhere(buffer)
    tensors = FileTensors(header, buffer)
    layers = _layers(layout, tensors, numbers, largest, targets)
    return ParsedLora(
        sha256=sha256.lower(),
        layers=layers,
        strays=tuple(layout.strays),
        format=layout.format,
        algorithm=layout.algorithm,
        rank=layout.rank,
        nbytes=tensors.nbytes,
    )


def _fitted(header: SafetensorsHeader, targets: ModelTargets) -> LoraLayout:
    layout = lay_out(header, targets.shapes, targets.key_map, "the loaded model")
    _check_biases(layout, targets)
    return layout


def _keys(layout: LoraLayout, without: Collection[Slot]) -> list[str]:
    """The keys of all layers' tensors but for those of some slots."""
    return [
        key
        for layer in layout.layers.values()
        for slot, key in layer.keys.items()
        if slot not in without
    ]


def _check_biases(layout: LoraLayout, targets: ModelTargets) -> None:
    for name, layer in layout.layers.items():
        biased = Slot.DIFF_B in layer.keys or Slot.UP_BIAS in layer.keys
        if biased and targets.modules[name].bias is None:
            raise load_failed(
                f"The LoRA changes the bias of {name}, which has none.", "misfit", misfits=[name]
            )


def _layers(
    layout: LoraLayout,
    tensors: FileTensors,
    numbers: dict[str, float],
    largest: dict[str, float],
    targets: ModelTargets,
) -> dict[str, LayerDelta]:
    layers = {}
    for name, layer in layout.layers.items():
        factor = _factor(name, layer, numbers)
        if Slot.SCALAR in layer.keys:
            factor *= numbers[layer.keys[Slot.SCALAR]]
        layers[name] = LayerDelta(
            name=name,
            weight_shape=targets.shapes[name],
            plan=layer.plan,
            tensors={
                slot: tensors[key] for slot, key in layer.keys.items() if slot not in _NUMBERS
            },
            factor=factor,
            bound=_bound(layer, largest, factor),
        )
    return layers


def _largest(layout: LoraLayout, contents: Contents) -> dict[str, float]:
    """No value of a factor is larger in size, by key.

    Raises:
        LoraLoadFailed: a factor is not finite.
    """
    keys = _keys(layout, without={Slot.ALPHA})
    largest_of_all = contents.largest()
    if largest_of_all is not None:
        return dict.fromkeys(keys, largest_of_all)
    # Several dtypes; or a value that is not finite, which may be a stray's or an unused α's.
    tensors = FileTensors(layout.header, contents.buffer)
    return _largest_of_each({key: tensors[key] for key in keys})


def _largest_of_each(factors: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute value of each tensor; refuses NaN and infinity."""
    largest: dict[str, float] = {}
    for key, tensor in factors.items():
        largest[key] = float(largest_value(tensor))
        if not math.isfinite(largest[key]):
            raise load_failed(f"'{shown(key)}' holds NaN or infinity.", "not_finite")
    return largest


def _factor(name: str, layer: LayerTensors, numbers: dict[str, float]) -> float:
    """α / rank; 1 without an α, and where nothing is low-rank (LyCORIS ignores α there)."""
    if layer.plan.rank == 0 or layer.plan.algorithm in (Algorithm.FULL, Algorithm.BIAS):
        return 1.0
    alpha = layer.file_alpha
    if Slot.ALPHA in layer.keys:
        alpha = numbers[layer.keys[Slot.ALPHA]]
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
