"""All weights that LoRAs may change in one block of memory, and W0 in another one like it.

Duty: put a model's parameters into one block, once, at start; copy W0 over all of them and compare
all of them with it in a few operations, however many tensors they are: on a GPU an operation costs
more to launch than most of these tensors take to copy.
Must not know: LoRAs, which tensors were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

# Where each tensor begins: as the allocator does, for kernels that load many bytes at once.
_ALIGNED = 512
# Compared at once: a comparison takes an eighth of it as scratch.
_PIECE_BYTES = 1 << 30


class Arena:
    """One block that live parameters are views of, and its pristine twin.

    Args:
        parameters: by name, dense, on one device; from here on they live in the block. The same
            parameter under two names is moved once.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        named = list(parameters)
        places: dict[int, int] = {}
        end = 0
        for _, parameter in named:
            if id(parameter) not in places:
                places[id(parameter)] = end
                end += -(-parameter.nbytes // _ALIGNED) * _ALIGNED
        self._live = torch.zeros(end, dtype=torch.uint8, device=named[0][1].device)
        moved: set[int] = set()
        with torch.no_grad():
            for _, parameter in named:
                if id(parameter) in moved:
                    continue
                moved.add(id(parameter))
                view = _view(self._live, places[id(parameter)], parameter)
                view.copy_(parameter)
                parameter.data = view
        if self._live.is_cuda:
            # The weights' former places, which are too small for the second block.
            torch.cuda.empty_cache()
        self._pristine = self._live.clone()
        self.pristine: dict[str, Tensor] = {
            name: _view(self._pristine, places[id(parameter)], parameter.detach())
            for name, parameter in named
        }

    @property
    def nbytes(self) -> int:
        """Of the pristine block; the live one has as many."""
        return self._pristine.nbytes

    def restore(self) -> bool:
        """Copy W0 over every parameter; whether all bits of all of them are W0's then."""
        self.copy_back()
        return self.is_pristine()

    def copy_back(self) -> None:
        """Copy W0 over every parameter; a GPU may do it after this returns."""
        self._live.copy_(self._pristine)

    def is_pristine(self) -> bool:
        """Whether all bits of all parameters are W0's; waits for the device once."""
        differs = torch.zeros((), dtype=torch.bool, device=self._live.device)
        for live, pristine in self._pieces():
            differs |= (live != pristine).any()
        return not bool(differs)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        live, pristine = self._live.view(torch.int64), self._pristine.view(torch.int64)
        count = _PIECE_BYTES // 8
        for start in range(0, len(live), count):
            yield live[start : start + count], pristine[start : start + count]


def _view(block: Tensor, start: int, like: Tensor) -> Tensor:
    part = block[start : start + like.nbytes].view(like.dtype)
    return torch.as_strided(part, tuple(like.shape), like.stride(), part.storage_offset())


def fits_arena(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether parameters can live in one block: each dense and alone in its memory."""
    seen: dict[int, int] = {}
    for parameter in parameters:
        if not _fills_its_memory(parameter):
            return False
        # Two parameters in one memory would part ways.
        if seen.setdefault(parameter.data_ptr(), id(parameter)) != id(parameter):
            return False
    return bool(seen)


def _fills_its_memory(tensor: Tensor) -> bool:
    sides = sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        if size != 1
    )  # fmt: skip
    expected = 1
    for stride, size in sides:
        if stride != expected:
            return False
        expected *= size
    return tensor.numel() > 0
