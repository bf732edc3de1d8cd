"""Reads and checks the header of an untrusted .safetensors file; opens no tensor.

Duty: 8-byte length + JSON → names, dtypes, shapes and spans, every one checked before use, in
memory bounded by the header's cap. A file that is something else is named by its first bytes.
Must not know: what the tensors mean, torch.

Layout (safetensors format): u64 little-endian header length, that many bytes of JSON
`{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {str: str}}`, then the data,
offsets counting from the header's end, without holes.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple, Protocol

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import LORA_HEADER_MAX_BYTES
from sdxl_contract.lora.header_json import split_header

NAME_MAX_CHARS = 512
MAX_DIMENSIONS = 8
MAX_SIDE = 2**31
MAX_OFFSET = 2**62
_SNIFF_BYTES = 512

# Bytes per element of the dtypes that are read or recognised.
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
# What torch and NumPy call those that they have.
DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
# A base model's header; the safetensors library reads no larger one either.
MODEL_HEADER_MAX_BYTES = 100 * 2**20
_FIELDS = {"dtype", "shape", "data_offsets"}
FACTOR_DTYPES = frozenset({"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"})


class TensorEntry(NamedTuple):
    """One tensor of the header. `start` and `end` are bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A checked header. `data_start` and `size` are bytes from the start of the file."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int
    size: int


class Readable(Protocol):
    """What is asked of a file: binary, forward only."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes; none at the end."""
        ...


def load_failed(message: str, reason: str, **details: Any) -> LoraLoadFailed:
    """`LoraLoadFailed` with `details["reason"]`, the machine-readable why."""
    return LoraLoadFailed(message, details={"reason": reason, **details})


def shown(name: str, limit: int = 120) -> str:
    """An untrusted name made safe to show: printable, valid Unicode and at most `limit` chars."""
    clean = name[: limit + 1]
    if not clean.isprintable():
        clean = "".join(char if char.isprintable() else "?" for char in clean)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def read_header(file: Readable, size: int) -> SafetensorsHeader:
    """The checked header of `file`, a safetensors file of `size` bytes.

    Args:
        file: read from its current position, forward only; stays open, left in the data part.
        size: bytes of the whole file, which offsets must cover exactly.

    Raises:
        LoraLoadFailed: the file is no safetensors file, or its header is broken or out of bounds.
    """
    head = _read(file, 8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > LORA_HEADER_MAX_BYTES or length > size - 8 or length < 2:
        raise _not_safetensors(head + _read(file, _SNIFF_BYTES), size, length)
    raw = _read(file, length)
    if len(raw) < length:
        raise load_failed("The file is truncated: it ends inside its own header.", "truncated")
    if not raw.startswith(b"{"):
        raise _not_safetensors(head + raw[:_SNIFF_BYTES], size, length)
    return _check(*split_header(raw), 8 + length, size)


def read_prefix(file: Readable, size: int) -> bytes:
    """What comes before the data of a base model's weight file: the header and its length.

    Its JSON begins at byte 8 and is not checked: a model's owner chose the file, and such files
    hold what a LoRA must not, such as empty tensors. For a stranger's file use `read_header`.

    Raises:
        ValueError: the file is no safetensors file, or ends inside its header.
    """
    head = _read(file, 8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or not 0 < length <= min(MODEL_HEADER_MAX_BYTES, size - 8):
        raise ValueError("not a safetensors file")
    raw = _read(file, length)
    if len(raw) < length:
        raise ValueError("truncated inside its header")
    return head + raw


def read_header_bytes(data: bytes | memoryview) -> SafetensorsHeader:
    """`read_header` of a whole file in memory, copying no more than its header."""
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    length = int.from_bytes(view[:8], "little")
    return read_header(BytesIO(view[: 8 + min(length, LORA_HEADER_MAX_BYTES) + 512]), len(view))


def _read(file: Readable, count: int) -> bytes:
    """Up to `count` bytes: a raw file may return fewer than asked for before its end."""
    parts: list[bytes] = []
    left = count
    while left > 0:
        part = file.read(left)
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _check(
    header: dict[str, Any], metadata: dict[str, str], data_start: int, size: int
) -> SafetensorsHeader:
    if not header:
        raise load_failed("The safetensors file holds no tensors.", "empty")
    tensors = {name: _entry(name, fields) for name, fields in header.items()}
    _check_spans(tensors, size - data_start)
    return SafetensorsHeader(tensors, metadata, data_start, size)


def _entry(name: str, fields: Any) -> TensorEntry:
    if not name or len(name) > NAME_MAX_CHARS or not name.isprintable():
        raise load_failed(
            f"The tensor name '{shown(name)}' is empty, too long or not printable.", "tensor_name"
        )
    # The name is printable from here on; only its length is still to be cut where it is shown.
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise load_failed(
            f"The entry of '{shown(name)}' must have dtype, shape and data_offsets only.", "header"
        )
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        said = shown(dtype, 20) if isinstance(dtype, str) else "that is no text"
        raise load_failed(f"'{shown(name)}' has a dtype {said}.", "dtype")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise load_failed(f"'{shown(name)}' has a shape that is not a short list.", "shape")
    # Written out, here and below: files have thousands of tensors, and calls cost the most. By its
    # type, since True is an int in Python and not in a header.
    needed = DTYPE_BYTES[dtype]
    for side in shape:
        if type(side) is not int or not 1 <= side <= MAX_SIDE:
            raise load_failed(f"'{shown(name)}' has a side that is not a positive number.", "shape")
        needed *= side
    start, end = offsets if isinstance(offsets, list) and len(offsets) == 2 else (None, None)
    if type(start) is not int or type(end) is not int or not 0 <= start <= end <= MAX_OFFSET:
        raise load_failed(f"'{shown(name)}' has offsets that are not two numbers.", "offsets")
    if end - start != needed:
        raise load_failed(
            f"'{shown(name)}' spans {end - start} bytes, but its shape and dtype need {needed}.",
            "offsets",
        )
    return TensorEntry(dtype, tuple(shape), start, end)


def _check_spans(tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    """Spans must tile the data: a gap hides bytes, an overlap makes one tensor two."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].start):
        if entry.start != position:
            raise load_failed(
                f"'{shown(name)}' starts at byte {entry.start} of the data instead of {position}: "
                "spans must neither overlap nor leave gaps.",
                "offsets",
            )
        position = entry.end
    if position > data_bytes:
        raise load_failed(
            f"The file is truncated: its tensors need {position} bytes and {data_bytes} are there.",
            "truncated",
        )
    if position < data_bytes:
        raise load_failed(
            f"The file has {data_bytes - position} bytes after its last tensor.", "trailing_bytes"
        )


_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x80\x02", "a Python pickle (an old PyTorch checkpoint), which is never opened"),
    (b"\x80\x03", "a Python pickle, which is never opened"),
    (b"\x80\x04", "a Python pickle, which is never opened"),
    (b"\x80\x05", "a Python pickle, which is never opened"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "bzip2-compressed"),
    (b"\xfd7zXZ", "xz-compressed"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file, such as a WebP image"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a Linux program"),
    (b"MZ", "a Windows program"),
    (b"#!", "a script"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
_TEXT_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page, probably an error page or a login"),
    (b"<html", "an HTML page, probably an error page or a login"),
    (b"<?xml", "an XML document, probably a storage server's error"),
    (b"<error", "an XML document, probably a storage server's error"),
    (b"{", "JSON text, probably an error answer"),
    (b"[", "JSON text"),
)


def describe_bytes(head: bytes) -> str | None:
    """What a file that starts with `head` (up to 520 bytes) is, if that is known."""
    if head.startswith(b"PK"):
        if b"data.pkl" in head or b"archive/" in head or b".pkl" in head:
            return "a PyTorch checkpoint (a zip with a pickle inside), which is never opened"
        return "a zip archive"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what in _TEXT_MAGIC:
        if text.startswith(magic):
            return what
    return "a text file" if head and _is_text(head) else None


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)


def _not_safetensors(head: bytes, size: int, length: int) -> LoraLoadFailed:
    if size == 0:
        return load_failed("The file is empty.", "not_safetensors", seems="empty")
    what = describe_bytes(head)
    if what is None and length <= LORA_HEADER_MAX_BYTES and head[8:9] == b"{":
        return load_failed("The file is truncated: it ends inside its own header.", "truncated")
    if what is None and head[8:9] == b"{":
        return load_failed(
            f"The safetensors header is {length} bytes long; at most {LORA_HEADER_MAX_BYTES} "
            "are read.",
            "header_too_large",
        )
    seems = what or "of an unknown kind"
    return load_failed(
        f"The file is not a safetensors file: it is {seems}.", "not_safetensors", seems=seems
    )
