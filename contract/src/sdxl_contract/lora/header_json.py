"""Takes the JSON of a safetensors header apart without unfolding it.

Duty: up to 100 MB of untrusted JSON → the entries of its tensors and the part of its metadata
that is kept, in memory of about the header's own size and time in line with it. Trainers write
every caption's tags into the metadata: one string of tens of megabytes.
Must not know: what the entries mean.

The header is an object of small objects (the tensors) and of one object of strings
(`__metadata__`). One of usual size goes through `json` as a whole, in a sixth of the time; one that
is larger or has anything unusual is read by hand, piece by piece, which also says what is wrong.
Each piece of that which is kept goes through `json`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import LORA_MAX_TENSORS

_BLANKS = re.compile(rb"[ \t\n\r]*+")
# A part of a string, bounded, because nothing else runs during a search.
_STRING_PART = re.compile(
    rb'[^"\\\x00-\x1f]{0,1048576}+'
    rb'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]{0,256}+){0,4096}+'
)
_QUOTE, _COLON, _COMMA, _OPEN, _CLOSE = b'":,{}'
# An entry holds a dtype, a shape of up to 8 sides and two offsets.
_ENTRY_BYTES = 2048
_KEY_BYTES = 8192
_METADATA_PAIRS = 100_000
# Longer values are bookkeeping that nobody here reads; together they stay in bounds, too.
_VALUE_BYTES, _KEPT_BYTES = 16 * 2**20, 48 * 2**20
_DECODE_BYTES = 1 << 20
# Read as a whole up to here: some 10 ms, in which no other thread runs, and 50 MB at most.
_USUAL_BYTES, _USUAL_KEY_CHARS = 1 << 20, 1024
# Without this a LoRA would be applied at another strength.
_NEEDED = frozenset({"lora_adapter_metadata"})


def failed(message: str, reason: str = "header") -> LoraLoadFailed:
    """A refusal of the header."""
    return LoraLoadFailed(message, details={"reason": reason})


def _not_json() -> LoraLoadFailed:
    return failed("The safetensors header is not valid JSON.")


def _twice() -> LoraLoadFailed:
    return failed("The safetensors header names the same key twice.", "duplicate_key")


class _DuplicateKey(ValueError):
    """A JSON object names a key twice: two readers could see two different files."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_ENTRY = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def split_header(raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensor name → its entry as JSON, metadata) of a header that begins with `{`.

    Raises:
        LoraLoadFailed: it is no JSON object of that kind, or names a key twice.
    """
    return split_at_once(raw) or split_by_hand(raw)


def split_by_hand(raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """`split_header` of any header, piece by piece."""
    _check_utf8(raw)
    reader = _Reader(raw)
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] | None = None
    for key in reader.names():
        if key == "__metadata__":
            if metadata is not None:
                raise _twice()
            metadata = reader.metadata()
            continue
        if key in tensors:
            raise _twice()
        if len(tensors) == LORA_MAX_TENSORS:
            raise failed(
                f"The file holds more than {LORA_MAX_TENSORS} tensors.", "too_many_tensors"
            )
        tensors[key] = reader.entry()
    reader.end()
    return tensors, metadata or {}


def split_at_once(raw: bytes) -> tuple[dict[str, Any], dict[str, str]] | None:
    """`split_header` of a usual header; None where anything is too much or not as it should be."""
    if len(raw) > _USUAL_BYTES:
        return None
    try:
        tensors = _ENTRY.decode(raw.decode())
    except (ValueError, RecursionError):
        return None
    metadata = tensors.pop("__metadata__", {})
    if (
        not isinstance(metadata, dict)
        or len(tensors) > LORA_MAX_TENSORS
        or any(len(key) > _USUAL_KEY_CHARS for key in (*tensors, *metadata))
        or not all(isinstance(value, str) for value in metadata.values())
    ):
        return None
    return tensors, metadata


def _check_utf8(raw: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(raw), _DECODE_BYTES):
            decoder.decode(raw[start : start + _DECODE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_json() from error


class _Reader:
    """A place in the header's text, moving forward."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def _peek(self) -> int:
        """The next byte that is no blank; 0 at the end."""
        found = _BLANKS.match(self._raw, self._at)
        assert found is not None
        self._at = found.end()
        return self._raw[self._at] if self._at < len(self._raw) else 0

    def _take(self, sign: int) -> None:
        if self._peek() != sign:
            raise _not_json()
        self._at += 1

    def names(self) -> Iterator[str]:
        """Each key of the object that begins here; the caller reads its value before the next."""
        self._take(_OPEN)
        if self._peek() == _CLOSE:
            self._at += 1
            return
        while True:
            start, end = self._string()
            if end - start > _KEY_BYTES:
                raise failed("A name in the safetensors header is too long.", "tensor_name")
            key = self._text(start, end)
            self._take(_COLON)
            yield key
            if self._peek() == _CLOSE:
                self._at += 1
                return
            self._take(_COMMA)

    def end(self) -> None:
        """Nothing but blanks may follow: they pad the header to 8 bytes."""
        self._peek()
        if self._at < len(self._raw):
            raise _not_json()

    def entry(self) -> Any:
        """The small JSON value here."""
        self._peek()
        # All that an entry may hold is ASCII; what is not is refused by whoever looks at it.
        window = self._raw[self._at : self._at + _ENTRY_BYTES].decode("latin-1")
        try:
            value, length = _ENTRY.raw_decode(window)
        except _DuplicateKey as error:
            raise _twice() from error
        except (ValueError, RecursionError) as error:
            raise _not_json() from error
        self._at += length
        return value

    def metadata(self) -> dict[str, str]:
        """The object of strings here, without what is too long to be of use."""
        if self._peek() != _OPEN:
            raise failed("__metadata__ must map strings to strings.", "metadata")
        kept: dict[str, str] = {}
        seen: set[str] = set()
        left = _KEPT_BYTES
        for key in self.names():
            if key in seen:
                raise _twice()
            if len(seen) == _METADATA_PAIRS:
                raise failed("The safetensors header has far too many parts.")
            seen.add(key)
            if self._peek() != _QUOTE:
                raise failed("__metadata__ must map strings to strings.", "metadata")
            start, end = self._string()
            if end - start <= min(_VALUE_BYTES, left):
                kept[key] = self._text(start, end)
                left -= end - start
            elif key in _NEEDED:
                raise failed(f"{key} is too long to be read.", "metadata")
        return kept

    def _string(self) -> tuple[int, int]:
        """Where the string here starts and ends, its quotes included."""
        self._take(_QUOTE)
        start = self._at - 1
        while True:
            found = _STRING_PART.match(self._raw, self._at)
            assert found is not None
            moved = found.end() > self._at
            self._at = found.end()
            if self._at < len(self._raw) and self._raw[self._at] == _QUOTE:
                self._at += 1
                return start, self._at
            if not moved:
                raise _not_json()

    def _text(self, start: int, end: int) -> str:
        try:
            text = json.loads(self._raw[start:end])
        except ValueError as error:
            raise _not_json() from error
        assert isinstance(text, str)
        return text
