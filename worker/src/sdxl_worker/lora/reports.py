"""What the patcher says of its work, and what it takes from others.

Must not know: how weights are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from torch import Tensor

from sdxl_contract.errors import ModelLoadFailed


class ModelCorrupted(ModelLoadFailed):
    """The model is not what it was at start and cannot be put back: stop serving."""


class SwapKind(StrEnum):
    """What `apply` had to do."""

    NONE = "none"
    FRESH = "fresh"
    SWITCH = "switch"
    SAME = "same"


@dataclass(frozen=True)
class SwapReport:
    """What `apply` did. Tensors written with merged values, and others put back to W0."""

    kind: SwapKind
    tensors_written: int
    tensors_restored: int
    bytes_written: int
    seconds: float


@dataclass(frozen=True)
class RestoreReport:
    """What `restore` did: all of it verified against W0."""

    tensors: int
    nbytes: int
    seconds: float


class Keeper(Protocol):
    """Keeps pristine copies of weights outside of the patcher, as a mapped file does."""

    def twin(self, tensor: Tensor) -> Tensor | None:
        """The copy of a weight that nobody has written yet, never to be written; None if there
        is none."""

    def changed(self) -> str | None:
        """What has been written all the same, as a word for it, or None."""


class Follower(Protocol):
    """Keeps what is computed from the weights, such as a copy in fewer bits, in step with them."""

    def written(self, names: Sequence[str]) -> None:
        """These weights, by full name, may have other values now."""

    def restore(self) -> str | None:
        """All weights are W0 again: be what that asks for, and prove it; what is not, or None."""

    def difference(self) -> str | None:
        """What is not as it was at start, every byte of what holds no LoRA looked at, or None."""

    def drop_recording(self) -> None:
        """Give up what only makes this faster: when memory is short."""


def nothing(*_: Any) -> None:
    """The hook of a caller who wants none."""
