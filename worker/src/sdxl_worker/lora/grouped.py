"""Many layers' merges prepared together, written by one product each, recorded where that pays.

Duty: from a set of plain LoRAs to one product W = W0 + a·(left @ right) for each layer, the
operands of all layers of one shape prepared by the same few operations; exactly the operands, and
so the bits, of `merge`'s own way layer by layer.
Must not know: which tensors are dirty, requests.

On a GPU a launch from Python takes as long as most of these layers' products. So once sets that
change the same layers by factors of the same shapes and strengths have come twice, the writing is
recorded: a set's operands are copied to where the recording reads them, and it is replayed. Files
of one trainer are alike in that. The sets that were prepared last are kept.
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
_RECORDINGS_MAX = 4
# Kinds of sets that came once, remembered for when they come again.
_KINDS_MAX = 64


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


class Group(NamedTuple):
    """The operands of layers that were prepared together: (n, out, R) and (n, R, in)."""

    names: tuple[str, ...]
    left: Tensor
    right: Tensor
    alphas: tuple[float, ...]

    @property
    def nbytes(self) -> int:
        """Of the operands."""
        return self.left.nbytes + self.right.nbytes

    def kind(self) -> Hashable:
        """Equal for groups that one recording can write."""
        return self.names, self.alphas, self.left.shape, self.right.shape, self.left.dtype

    def copied(self) -> Group:
        """The same in memory of its own."""
        return self._replace(left=self.left.clone(), right=self.right.clone())

    def take(self, other: Group) -> None:
        """Hold the operands of another group of the same kind."""
        self.left.copy_(other.left)
        self.right.copy_(other.right)


@dataclass
class _Recorded:
    """A recording, the operands that it reads, whose these are now, and when it was used last."""

    groups: list[Group]
    recording: Recording
    holds: Hashable
    used: int = 0

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)


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
    # What was prepared, by what is written; recordings, by kind; kinds that are not recorded, and
    # which write they came with last: None for what cannot be recorded.
    _kept: OrderedDict[Hashable, list[Group]] = field(default_factory=OrderedDict)
    _recorded: OrderedDict[Hashable, _Recorded] = field(default_factory=OrderedDict)
    _seen: OrderedDict[Hashable, int | None] = field(default_factory=OrderedDict)
    _writes: int = 0
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
        self._writes += 1
        if key in self._kept:
            self._kept.move_to_end(key)
        holding = next((kind for kind, one in self._recorded.items() if one.holds == key), None)
        if holding is not None:
            self._use(holding).recording.replay()
            return
        groups = self._kept.get(key) or self._prepared(key, plan)
        kind = tuple(group.kind() for group in groups)
        if kind not in self._recorded and not self._is_now_recorded(kind, key, groups):
            for product in self._products(groups):
                product.write()
            return
        recorded = self._use(kind)
        if recorded.holds != key:
            recorded.holds = None
            for mine, theirs in zip(recorded.groups, groups, strict=True):
                mine.take(theirs)
            recorded.holds = key
        recorded.recording.replay()

    def drop_all(self) -> None:
        """Give up what is kept, such as when memory is short."""
        self._kept.clear()
        self._seen.clear()
        while self._recorded:
            self._drop_recording()

    def _products(self, groups: Sequence[Group]) -> list[Product]:
        return [
            Product(_matrix(self.live[name]), _matrix(self.pristine[name]), left, right, alpha)
            for group in groups
            for name, left, right, alpha in zip(
                group.names, group.left.unbind(), group.right.unbind(), group.alphas, strict=True
            )
        ]

    def _prepared(self, key: Hashable, plan: Mapping[str, Sequence[Contribution]]) -> list[Group]:
        try:
            return self._prepare(key, plan)
        except (RuntimeError, MemoryError) as error:
            if not ((self._kept or self._recorded) and is_out_of_memory(error)):
                raise
            let_go(error)
        # Not above: there the error still holds what the first try had made.
        self.drop_all()
        return self._prepare(key, plan)

    def _prepare(self, key: Hashable, plan: Mapping[str, Sequence[Contribution]]) -> list[Group]:
        groups = prepare(self.live, self.pristine, plan)
        if sum(group.nbytes for group in groups) <= self.budget_bytes:
            self._kept[key] = groups
            self._keep_within_budget()
        return groups

    def _keep_within_budget(self, more: int = 0) -> None:
        """Sets go, which can be prepared again, until there is room for so many bytes more."""
        while self._kept and (
            len(self._kept) > _SETS_MAX or self._held() + more > self.budget_bytes
        ):
            self._kept.popitem(last=False)

    def _held(self) -> int:
        """Bytes of all operands that are kept."""
        kept = sum(group.nbytes for groups in self._kept.values() for group in groups)
        return kept + sum(one.nbytes for one in self._recorded.values())

    def _drop_recording(self) -> None:
        _, oldest = self._recorded.popitem(last=False)
        oldest.recording.discard()

    def _use(self, kind: Hashable) -> _Recorded:
        """The recording of a kind, which becomes the one that was used last."""
        self._recorded.move_to_end(kind)
        self._recorded[kind].used = self._writes
        return self._recorded[kind]

    def _is_now_recorded(self, kind: Hashable, key: Hashable, groups: list[Group]) -> bool:
        """Record what writes sets of this kind, if it came before and there is room."""
        known, before = kind in self._seen, self._seen.get(kind)
        self._seen[kind] = None if known and before is None else self._writes
        self._seen.move_to_end(kind)
        if len(self._seen) > _KINDS_MAX:
            self._seen.popitem(last=False)
        size = sum(group.nbytes for group in groups)
        if self.recorder is None or before is None or not self._made_room(size, before):
            return False
        try:
            self._recorded[kind] = self._record(key, groups, self.recorder)
        except Exception as error:
            # Whatever it is, it is written layer by layer, as the first time. Memory may be there
            # another time.
            self._seen[kind] = None
            if is_out_of_memory(error):
                del self._seen[kind]
            let_go(error)
            return False
        del self._seen[kind]
        return True

    def _made_room(self, size: int, before: int) -> bool:
        """Give up what a recording of so many bytes needs: only recordings that nobody used since
        its kind came before. Else kinds that take turns would all be recorded, each time."""
        bound = sum(one.nbytes for one in self._recorded.values())
        leaving = 0
        for one in self._recorded.values():
            if (
                bound + size <= self.budget_bytes
                and len(self._recorded) - leaving < _RECORDINGS_MAX
            ):
                break
            if one.used >= before:
                return False
            bound -= one.nbytes
            leaving += 1
        if bound + size > self.budget_bytes:
            return False
        for _ in range(leaving):
            self._drop_recording()
        self._keep_within_budget(size)
        return True

    def _record(self, key: Hashable, groups: list[Group], recorder: Recorder) -> _Recorded:
        own = [group.copied() for group in groups]
        products = self._products(own)

        def write_all() -> None:
            for product in products:
                product.write()

        return _Recorded(own, recorder.record(write_all, "swaps"), key)


def prepare(
    live: Mapping[str, Tensor],
    pristine: Mapping[str, Tensor],
    plan: Mapping[str, Sequence[Contribution]],
) -> list[Group]:
    """The operands of every tensor of `plan`, those of like layers prepared together."""
    alike: dict[Hashable, list[_Layer]] = defaultdict(list)
    for name, contributions in plan.items():
        layer = _Layer(
            name,
            live[name],
            [strength * one.factor for one, strength in contributions],
            [one.matrices() for one, _ in contributions],
        )
        alike[layer.kind()].append(layer)
    return [_prepare_alike(layers) for layers in alike.values()]


class _Layer(NamedTuple):
    """One layer's name, its weight, and scales and factors of the LoRAs that change it."""

    name: str
    live: Tensor
    scales: list[float]
    factors: list[tuple[Tensor, Tensor]]

    @property
    def has_one_scale(self) -> bool:
        return self.scales.count(self.scales[0]) == len(self.scales)

    def kind(self) -> Hashable:
        """Equal for layers whose factors can be stacked."""
        factors = [(up.shape, up.dtype, down.shape, down.dtype) for up, down in self.factors]
        return self.live.shape[0], self.live.dtype, *factors, self.has_one_scale


def _prepare_alike(layers: list[_Layer]) -> Group:
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
    return Group(
        tuple(layer.name for layer in layers),
        torch.cat(lefts, dim=2),
        torch.cat(rights, dim=1),
        tuple(layer.scales[0] if common else 1.0 for layer in layers),
    )


def _matrix(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 2 else weight.view(weight.shape[0], -1)
