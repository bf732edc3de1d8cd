"""The operator's networks: what there is, and those in use in memory, within a budget of bytes.

Duty: found at start by name, with the SHA-256 of their files; loaded when a request names them, let
go least recently used first; proven unwritten, by their tensors' versions after each request and by
every byte in a full check.
Must not know: what a network is for, requests.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from sdxl_contract.errors import ModelLoadFailed
from sdxl_worker.bits import fingerprints
from sdxl_worker.lora import ModelCorrupted

log = structlog.get_logger()
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Item:
    """One network on disk.

    Attributes:
        kind: what it is for, such as `upscaler`; names are unique within a kind.
        stamp: the file's length and time of change, as they were when it was hashed.
        load: makes the network, on the CPU.
        about: what the kind's users need to know of it.
        settle: lets it set itself up where it is used, which some do at their first call.
    """

    kind: str
    name: str
    path: Path
    sha256: str
    stamp: tuple[int, int]
    load: Callable[[], nn.Module]
    about: Any = None
    settle: Callable[[nn.Module], object] = lambda network: network

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return self.stamp[0]


class _Loaded:
    def __init__(self, item: Item, network: nn.Module) -> None:
        self.item, self.network = item, network
        self.tensors = dict(_tensors(network))
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self.places = [(t.data_ptr(), t._version) for t in self.tensors.values()]
        self.hooks = _hooks(network)
        self.prints = self.prints_now()

    def prints_now(self) -> dict[str, bytes]:
        """Of every byte, by tensor."""
        return dict(zip(self.tensors, fingerprints(self.tensors.values()), strict=True))

    def difference(self) -> str | None:
        now = dict(_tensors(self.network))
        places = [(t.data_ptr(), t._version) for t in now.values()]
        if now.keys() != self.tensors.keys() or places != self.places:
            return f"{self.item.kind} {self.item.name}"
        if _hooks(self.network) != self.hooks:
            return f"{self.item.kind} {self.item.name}"
        return None


class Shelf:
    """Networks by kind and name. One caller at a time.

    Args:
        items: what there is.
        budget: bytes of loaded networks; one that is larger alone is loaded all the same.
        place: puts a loaded network where it is used.
        gone: told of each network that is let go.
    """

    def __init__(
        self,
        items: Sequence[Item],
        budget: int,
        place: Callable[[nn.Module], nn.Module] = lambda network: network,
        gone: Callable[[nn.Module], object] = lambda network: None,
    ) -> None:
        self._items = {(item.kind, item.name): item for item in items}
        self._budget = budget
        self._place, self._gone = place, gone
        self._loaded: OrderedDict[tuple[str, str], _Loaded] = OrderedDict()

    def of_kind(self, kind: str) -> list[Item]:
        """What there is, by name."""
        found = [item for item in self._items.values() if item.kind == kind]
        return sorted(found, key=lambda item: item.name)

    @property
    def nbytes(self) -> int:
        """Memory of what is loaded."""
        return sum(one.nbytes for one in self._loaded.values())

    def item(self, kind: str, name: str) -> Item:
        """One by name; what a request names was checked before."""
        return self._items[kind, name]

    def get(self, kind: str, name: str, keep: Collection[tuple[str, str]] = ()) -> nn.Module:
        """A network, loaded if it is not.

        Args:
            keep: kinds and names of those that are in use and stay.

        Raises:
            ModelLoadFailed: its file is not what it was at start.
        """
        key = (kind, name)
        if key not in self._loaded:
            item = self._items[key]
            self._make_room(item.nbytes, keep)
            if stamp_of(item.path) != item.stamp:
                raise ModelLoadFailed(f"the file of the {kind} {name} was changed: restart")
            network = self._place(item.load())
            item.settle(network)
            self._loaded[key] = _Loaded(item, network)
            log.info("network_loaded", kind=kind, name=name, bytes=self._loaded[key].nbytes)
        self._loaded.move_to_end(key)
        return self._loaded[key].network

    def _make_room(self, nbytes: int, kept: Collection[tuple[str, str]]) -> None:
        for key in list(self._loaded):
            if self.nbytes + nbytes <= self._budget:
                return
            if key not in kept:
                self._gone(self._loaded.pop(key).network)

    def clear(self) -> None:
        """Let everything go."""
        while self._loaded:
            self._gone(self._loaded.popitem()[1].network)

    def verify(self) -> None:
        """Whether anything was written or attached since it was loaded: no byte is read.

        Raises:
            ModelCorrupted: something was.
        """
        for one in self._loaded.values():
            if (changed := one.difference()) is not None:
                raise ModelCorrupted(f"The model is corrupted: the {changed} was written.")

    def verify_full(self) -> None:
        """`verify`, and every byte of what is loaded.

        Raises:
            ModelCorrupted: anything differs.
        """
        self.verify()
        for one in self._loaded.values():
            for name, found in one.prints_now().items():
                if found != one.prints[name]:
                    raise ModelCorrupted(
                        f"The model is corrupted: {one.item.kind} {one.item.name}'s {name} was "
                        "written."
                    )


def stamp_of(path: Path) -> tuple[int, int]:
    """A file's length and time of change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def sha256_of(path: Path) -> str:
    """Of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.state_dict(keep_vars=True).items()


def _hooks(network: nn.Module) -> list[tuple[Any, ...]]:
    """The functions that its modules call beside their own; held, so that none takes the place of
    another in memory.
    """
    return [
        (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        for module in network.modules()
    ]


def onto(
    device: torch.device, dtype: torch.dtype | None = None
) -> Callable[[nn.Module], nn.Module]:
    """Puts networks on `device`, in `dtype` if one is given."""

    def place(network: nn.Module) -> nn.Module:
        # As diffusers leaves its weights; see `loading.pipeline`.
        return network.to(device, dtype).eval().requires_grad_(True)

    return place
