"""Many layers' merges prepared together, written by one product each, recorded where that pays.

Duty: from a set of plain LoRAs to one product W = W0 + a·(left @ right) for each layer, the
operands of all layers of one shape prepared by the same few operations; exactly the operands, and
so the bits, of `merge`'s own way layer by layer.
Must not know: which tensors are dirty, requests.

On a GPU a launch from Python takes as long as most of these layers' products. So the sets that were
prepared last are kept, and one that comes a second time is recorded and from then on replayed.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdxl_worker.lora.merge import Contribution, exact_blocks, has_exact_products, surely_finite
from sdxl_worker.out_of_memory import is_out_of_memory, let_go

_SETS_MAX = 4


class Recording(Protocol):
    """A recorded run of all products."""

    def replay(self) -> Any:
        """Write all layers."""

    def discard(self) -> None:
        """Let go of it."""


class Recorder(Protocol):
    """Records work on a GPU; `graphs.cuda` has one."""

    def record(self, call: Callable[[], Any], pool: str) -> Recording:
        """`call` recorded; it is run a few times for that, which does no harm here."""


class Product(NamedTuple):
    """`out` ← `base` + `alpha`·(`left` @ `right`), all two-dimensional."""

    out: Tensor
    base: Tensor
    left: Tensor
    right: Tensor
    alpha: float

    def write(self) -> None:
        """Compute it in place of `out`."""
        torch.addmm(self.base, self.left, self.right, alpha=self.alpha, out=self.out)


@dataclass
class _Prepared:
    products: list[Product]
    nbytes: int
    uses: int = 0
    recording: Recording | None = None
    unrecordable: bool = False


@dataclass
class GroupedWrites:
    """Writes layers in bulk; one caller at a time.

    Args:
        live, pristine: every tensor by name, on one device.
        budget_bytes: of operands kept from one use to the next.
        recorder: None writes layer by layer, always.
    """

    live: Mapping[str, Tensor]
    pristine: Mapping[str, Tensor]
    budget_bytes: int = 0
    recorder: Recorder | None = None
    device_type: str = "cuda"
    _kept: OrderedDict[Hashable, _Prepared] = field(default_factory=OrderedDict)
    # Whether a tensor can be written so by any LoRA: it is never moved.
    _writable: dict[str, bool] = field(default_factory=dict)

    def takes(self, name: str, contributions: Sequence[Contribution]) -> bool:
        """Whether a tensor can be written in bulk: a weight, by plain LoRAs, surely finite."""
        if name not in self._writable:
            live, pristine = self.live[name], self.pristine[name]
            self._writable[name] = (
                name.endswith(".weight")
                and live.device.type == self.device_type == pristine.device.type
                and live.is_contiguous()
                and has_exact_products(live)
            )
        return (
            self._writable[name]
            and all(layer.is_plain for layer, _ in contributions)
            and surely_finite(self.pristine[name], contributions)
        )

    def write(self, key: Hashable, plan: Mapping[str, Sequence[Contribution]]) -> None:
        """Write every tensor of `plan`.

        Args:
            key: of the contributions and names; equal for what is written alike.
        """
        prepared = self._kept.get(key)
        if prepared is None:
            prepared = self._prepared(key, plan)
        else:
            self._kept.move_to_end(key)
        prepared.uses += 1
        if prepared.recording is None and prepared.uses > 1 and self.recorder is not None:
            self._record(prepared, self.recorder)
        if prepared.recording is not None:
            prepared.recording.replay()
            return
        for product in prepared.products:
            product.write()

    def drop_all(self) -> None:
        """Give up what is kept, such as when memory is short."""
        while self._kept:
            self._drop_oldest()

    def _prepared(self, key: Hashable, plan: Mapping[str, Sequence[Contribution]]) -> _Prepared:
        try:
            return self._prepare(key, plan)
        except (RuntimeError, MemoryError) as error:
            if not (self._kept and is_out_of_memory(error)):
                raise
            let_go(error)
        # Not above: there the error still holds what the first try had made.
        self.drop_all()
        return self._prepare(key, plan)

    def _prepare(self, key: Hashable, plan: Mapping[str, Sequence[Contribution]]) -> _Prepared:
        products = prepare(self.live, self.pristine, plan)
        nbytes = sum(one.left.nbytes + one.right.nbytes for one in products)
        prepared = _Prepared(products, nbytes)
        if nbytes <= self.budget_bytes:
            self._kept[key] = prepared
        while self._kept and (
            len(self._kept) > _SETS_MAX
            or sum(one.nbytes for one in self._kept.values()) > self.budget_bytes
        ):
            self._drop_oldest()
        return prepared

    def _drop_oldest(self) -> None:
        _, oldest = self._kept.popitem(last=False)
        if oldest.recording is not None:
            oldest.recording.discard()

    def _record(self, prepared: _Prepared, recorder: Recorder) -> None:
        if prepared.unrecordable:
            return

        def write_all() -> None:
            for product in prepared.products:
                product.write()

        try:
            prepared.recording = recorder.record(write_all, "swaps")
        except Exception:
            # Whatever it is, it is written layer by layer, as the first time.
            prepared.unrecordable = True


def prepare(
    live: Mapping[str, Tensor],
    pristine: Mapping[str, Tensor],
    plan: Mapping[str, Sequence[Contribution]],
) -> list[Product]:
    """One product for each tensor of `plan`, operands of like layers prepared together."""
    alike: dict[Hashable, list[_Layer]] = defaultdict(list)
    for name, contributions in plan.items():
        layer = _Layer(
            live[name],
            pristine[name],
            [strength * one.factor for one, strength in contributions],
            [one.matrices() for one, _ in contributions],
        )
        alike[layer.kind()].append(layer)
    products: list[Product] = []
    for layers in alike.values():
        products += _prepare_alike(layers)
    return products


class _Layer(NamedTuple):
    """One layer's weight, its W0, and scales and factors of the LoRAs that change it."""

    live: Tensor
    pristine: Tensor
    scales: list[float]
    factors: list[tuple[Tensor, Tensor]]

    @property
    def has_one_scale(self) -> bool:
        return self.scales.count(self.scales[0]) == len(self.scales)

    def kind(self) -> Hashable:
        """Equal for layers whose factors can be stacked."""
        factors = [(up.shape, up.dtype, down.shape, down.dtype) for up, down in self.factors]
        return self.live.shape[0], self.live.dtype, *factors, self.has_one_scale


def _prepare_alike(layers: list[_Layer]) -> list[Product]:
    first = layers[0]
    device, dtype, common = first.live.device, first.live.dtype, first.has_one_scale
    lefts, rights = [], []
    for place in range(len(first.scales)):
        up = torch.stack([layer.factors[place][0].to(device) for layer in layers])
        down = torch.stack([layer.factors[place][1].to(device) for layer in layers])
        if not common:
            strengths = torch.tensor([layer.scales[place] for layer in layers], dtype=torch.float64)
            up = up.float() * strengths.float().to(device).view(-1, 1, 1)
        for left, right in exact_blocks(up, down, dtype):
            lefts.append(left)
            rights.append(right)
    # Layers (n, out, R) and (n, R, in): each one's operands lie together.
    left, right = torch.cat(lefts, dim=2), torch.cat(rights, dim=1)
    return [
        Product(
            _matrix(layer.live),
            _matrix(layer.pristine),
            left_of_layer,
            right_of_layer,
            layer.scales[0] if common else 1.0,
        )
        for layer, left_of_layer, right_of_layer in zip(
            layers, left.unbind(), right.unbind(), strict=True
        )
    ]


def _matrix(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 2 else weight.view(weight.shape[0], -1)
