"""Which model it is: one value for all weights, the same wherever the same ones are loaded.

Duty: a pipeline → the identity that results, `GET /health` and receipts name. A model keeps it when
its folder is renamed, read from one file or laid out otherwise in memory; one changed element, or
another precision, is another model.
Must not know: requests, files.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

from torch import Tensor

from sdxl_worker.bits import fingerprints

_PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")


def weights_identity(pipe: Any) -> str:
    """32 hexadecimal digits. A checksum at memory speed: no proof against somebody who wants two
    models to have the same."""
    return _joined(list(_prints(_tensors(pipe))))


class LaterIdentity:
    """`weights_identity` of a pipeline as it is now, computed in a thread: it reads every byte, and
    of a model in mapped files nobody has done that yet.

    Args:
        pristine: a weight that may be written meanwhile → its copy that never is; what is none of
            those is left alone.
    """

    def __init__(self, pipe: Any, pristine: Callable[[Tensor], Tensor]) -> None:
        self._left = [(part, pristine(tensor)) for part, tensor in _tensors(pipe)]
        self._found: Future[str] = Future()
        # No daemon, which would be torn out of torch's code at the end.
        threading.Thread(target=self._compute, name="identity").start()

    @property
    def known(self) -> str | None:
        """It, or None as long as it is not known."""
        done = self._found.done() and self._found.exception() is None
        return self._found.result() if done else None

    def wait(self) -> str:
        """It, once it is known."""
        return self._found.result()

    def _compute(self) -> None:
        prints: list[bytes] = []
        try:
            while self._left:
                # A process that ends does not wait for this.
                if not threading.main_thread().is_alive():
                    raise CancelledError
                prints += _prints([self._left.pop()])
        except BaseException as error:
            self._found.set_exception(error)
        else:
            self._found.set_result(_joined(prints))


def _tensors(pipe: Any) -> list[tuple[bytes, Tensor]]:
    # As parameters, by which their copies are found.
    return [
        (part.encode(), tensor)
        for part in _PARTS
        for tensor in getattr(pipe, part).state_dict(keep_vars=True).values()
    ]


def _joined(prints: list[bytes]) -> str:
    # Sorted, not by name: libraries rename weights from version to version.
    return hashlib.blake2b(b"".join(sorted(prints)), digest_size=16).hexdigest()


def _prints(named: list[tuple[bytes, Tensor]]) -> Iterator[bytes]:
    found = fingerprints(_flat(tensor) for _, tensor in named)
    for (part, tensor), digest in zip(named, found, strict=True):
        yield part + str(tuple(tensor.shape)).encode() + digest


def _flat(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)  # in the order of its axes, whatever that of its memory is
    # Where it lies in a file must not matter.
    return flat.clone() if flat.storage_offset() else flat
