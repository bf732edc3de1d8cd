"""What a textual inversion's file must hold: read by its header, where it is kept and drawn with.

Must not know: tensors' values, storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import EMBEDDING_MAX_VECTORS
from sdxl_contract.lora.safetensors import read_header_bytes

# What a file calls the vectors of each text encoder.
EMBEDDING_TENSORS = ("clip_l", "clip_g")
# Two tensors take 200 bytes of it; a whole file of header would take seconds to read.
_HEADER_MAX_BYTES = 64 * 2**10
_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})


def wrong_embedding(field: str, why: str, reason: str) -> LoraLoadFailed:
    """The error of a file that is no embedding; it names `field`."""
    return LoraLoadFailed(f"{field}: {why}", details={"field": field, "reason": reason})


def count_vectors(data: bytes, widths: Sequence[int] | None, field: str) -> int:
    """How many vectors a whole file teaches each text encoder.

    Args:
        widths: of both text encoders' token embeddings; None where no model is known yet.
        field: where the file stands in a request.

    Raises:
        LoraLoadFailed: it is no embedding for these encoders; the message names `field`.
    """

    def wrong(why: str, reason: str) -> LoraLoadFailed:
        return wrong_embedding(field, why, reason)

    length = int.from_bytes(data[:8], "little")
    if _HEADER_MAX_BYTES < length <= len(data):
        raise wrong(
            f"its header has {length} bytes: at most {_HEADER_MAX_BYTES} are read", "header"
        )
    try:
        tensors = read_header_bytes(data).tensors
    except LoraLoadFailed as error:
        raise wrong(
            f"the file is not safetensors, or not whole: {error.message}", "not_safetensors"
        ) from None
    if set(tensors) != set(EMBEDDING_TENSORS):
        first, second = EMBEDDING_TENSORS
        raise wrong(
            f"an SDXL embedding's file has {first} and {second} and nothing else; this one has "
            f"{len(tensors)} tensors of other names or lacks one of them",
            "unsupported_kind",
        )
    counts = []
    for name, width in zip(EMBEDDING_TENSORS, widths or (None, None), strict=True):
        entry = tensors[name]
        shown: Any = "x".join(map(str, entry.shape))
        if entry.dtype not in _DTYPES:
            raise wrong(f"{name} must be of floating-point numbers, 16 to 64 bits each", "dtype")
        if len(entry.shape) != 2 or (width is not None and entry.shape[1] != width):
            raise wrong(f"{name} is {shown}: the model wants n x {width or 'its width'}", "misfit")
        if entry.shape[0] > EMBEDDING_MAX_VECTORS:
            raise wrong(
                f"{name} has {entry.shape[0]} vectors: from 1 to {EMBEDDING_MAX_VECTORS} are read",
                "misfit",
            )
        counts.append(entry.shape[0])
    if counts[0] != counts[1]:
        raise wrong("clip_l and clip_g have different numbers of vectors", "misfit")
    return counts[0]
