"""Whether a model's tensors are still the very same memory, for graphs and kernels that hold them.

Must not know: what the tensors hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_, methodcaller

import torch
from torch import Tensor, nn

from sdxl_worker.lora.keys import ModelTargets

_WHERE = methodcaller("data_ptr")


@dataclass(frozen=True)
class _Identity:
    """What must stay the same about a tensor."""

    data_ptr: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Identity:
        return cls(tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


class Identities:
    """Every parameter and buffer of a model as it is now."""

    def __init__(self, targets: ModelTargets) -> None:
        self._targets = targets
        self._known = {name: _Identity.of(tensor) for name, tensor in targets.tensors()}
        # The same by where each hangs: looked at twice in every request, without a walk through
        # the tree and its names.
        self._modules = [m for root in targets.roots.values() for m in root.modules()]
        self._held, self._names, self._tensors = zip(*_places(self._modules), strict=True)
        self._pointers = list(map(_WHERE, self._tensors))
        self._containers = [
            held
            for module in self._modules
            for held in (module._parameters, module._buffers, module._modules)
        ]
        self._sizes = list(map(len, self._containers))

    def changed(self) -> str | None:
        """Name of a tensor that was moved, replaced, added or retyped, or None."""
        # By loops in C: there are thousands of each.
        same = (
            list(map(len, self._containers)) == self._sizes
            and all(map(is_, map(dict.get, self._held, self._names), self._tensors))
            and list(map(_WHERE, self._tensors)) == self._pointers
        )
        return None if same else self.changed_in_full() or "a module"

    def changed_in_full(self) -> str | None:
        """`changed` by names, types, shapes and strides, too."""
        found = set()
        for name, tensor in self._targets.tensors():
            if _Identity.of(tensor) != self._known.get(name):
                return name
            found.add(name)
        return next((name for name in self._known if name not in found), None)


def _places(
    modules: list[nn.Module],
) -> Iterator[tuple[dict[str, nn.Parameter | None] | dict[str, Tensor | None], str, Tensor]]:
    for module in modules:
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    yield held, name, tensor
