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
from typing import Any, Protocol

import torch
from torch import Tensor

from sdxl_worker.lora.merge import Contribution, exact_blocks, has_exact_products, surely_finite

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


@dataclass(frozen=True)
class Product:
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

    def takes(self, name: str, contributions: Sequence[Contribution]) -> bool:
        """Whether a tensor can be written in bulk: a weight, by plain LoRAs, surely finite."""
        live, pristine = self.live[name], self.pristine[name]
        return (
            name.endswith(".weight")
            and live.device.type == self.device_type == pristine.device.type
            and all(layer.is_plain for layer, _ in contributions)
            and live.is_contiguous()
            and has_exact_products(live)
            and surely_finite(pristine, contributions)
        )

    def write(self, key: Hashable, plan: Mapping[str, Sequence[Contribution]]) -> None:
        """Write every tensor of `plan`.

        Args:
            key: of the contributions and names; equal for what is written alike.
        """
        prepared = self._kept.get(key)
        if prepared is None:
            try:
                prepared = self._prepare(key, plan)
            except (RuntimeError, MemoryError):
                if not self._kept:
                    raise
                self.drop_all()
                prepared = self._prepare(key, plan)
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
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for name, contributions in plan.items():
        alike[_kind(live[name], contributions)].append(name)
    products: list[Product] = []
    for names in alike.values():
        products += _prepare_alike(names, live, pristine, plan)
    return products


def _kind(out: Tensor, contributions: Sequence[Contribution]) -> Hashable:
    """Equal for layers whose factors can be stacked."""
    scales = [strength * layer.factor for layer, strength in contributions]
    factors = tuple(
        (up.shape, up.dtype, down.shape, down.dtype)
        for up, down in (layer.matrices() for layer, _ in contributions)
    )
    return out.shape[0], out.dtype, factors, all(scale == scales[0] for scale in scales)


def _prepare_alike(
    names: list[str],
    live: Mapping[str, Tensor],
    pristine: Mapping[str, Tensor],
    plan: Mapping[str, Sequence[Contribution]],
) -> list[Product]:
    out = live[names[0]]
    scales = [[strength * layer.factor for layer, strength in plan[name]] for name in names]
    common = all(scale == scales[0][0] for scale in scales[0])
    lefts, rights = [], []
    for place in range(len(scales[0])):
        pairs = [plan[name][place][0].matrices() for name in names]
        up = torch.stack([one.to(out.device) for one, _ in pairs])
        down = torch.stack([other.to(out.device) for _, other in pairs])
        if not common:
            strengths = torch.tensor([row[place] for row in scales], dtype=torch.float64)
            up = up.float() * strengths.float().to(out.device).view(-1, 1, 1)
        for left, right in exact_blocks(up, down, out.dtype):
            lefts.append(left)
            rights.append(right)
    # Layers (n, out, R) and (n, R, in): each one's operands lie together.
    left, right = torch.cat(lefts, dim=2), torch.cat(rights, dim=1)
    return [
        Product(
            _matrix(live[name]),
            _matrix(pristine[name]),
            left[number],
            right[number],
            scales[number][0] if common else 1.0,
        )
        for number, name in enumerate(names)
    ]


def _matrix(weight: Tensor) -> Tensor:
    return weight.view(weight.shape[0], -1)
