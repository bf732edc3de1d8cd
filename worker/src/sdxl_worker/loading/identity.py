"""Which model it is: one value for all weights, the same wherever the same ones are loaded.

Duty: a pipeline → the identity that results, `GET /health` and receipts name. A model keeps it when
its folder is renamed, read from one file or laid out otherwise in memory; one changed element, or
another precision, is another model.
Must not know: requests, files.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from sdxl_worker.lora.bits import fingerprint

_PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")


def weights_identity(pipe: Any) -> str:
    """32 hexadecimal digits. A checksum at memory speed: no proof against somebody who wants two
    models to have the same."""
    prints = [
        part.encode() + _print(tensor)
        for part in _PARTS
        for tensor in getattr(pipe, part).state_dict().values()
    ]
    # Sorted, not by name: libraries rename weights from version to version.
    return hashlib.blake2b(b"".join(sorted(prints)), digest_size=16).hexdigest()


def _print(tensor: Tensor) -> bytes:
    flat = tensor.reshape(-1)  # in the order of its axes, whatever that of its memory is
    if flat.storage_offset():  # where it lies in a file must not matter
        flat = flat.clone()
    return str(tuple(tensor.shape)).encode() + fingerprint(flat)
