"""How a caller shows that its URL serves a file that is held already, without sending it again.

Duty: a file's bytes → some pieces of it in secret places; one of them at random is asked for and
compared. Whoever does not have the file cannot answer, whatever hash, length or ETag it claims.
Must not know: HTTP, caches.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

_PIECES = 16
_PIECE_BYTES = 4096


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `end` (excluded) of a file, by their SHA-256."""

    start: int
    end: int
    digest: bytes

    def matches(self, data: bytes | bytearray) -> bool:
        """Whether `data` is that piece."""
        return len(data) == self.end - self.start and self._digest(data) == self.digest

    @staticmethod
    def _digest(data: bytes | bytearray | memoryview) -> bytes:
        return hashlib.sha256(data).digest()

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, start: int, end: int) -> Piece:
        """The piece of `data` there."""
        return cls(start, end, cls._digest(memoryview(data)[start:end]))


@dataclass(frozen=True)
class Proof:
    """Pieces of one file, in places that were drawn by lot and are told to nobody."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Proof:
        """Of a whole safetensors file: of its weights, since headers are much alike. Pieces of one
        repeated byte are passed over where there are others."""
        view = memoryview(data).cast("B")
        first = 8 + int.from_bytes(view[:8], "little")
        if first >= len(view):
            first = 0
        size = min(_PIECE_BYTES, len(view) - first)
        found: list[Piece] = []
        dull: list[Piece] = []
        for _ in range(4 * _PIECES):
            start = first + secrets.randbelow(len(view) - first - size + 1)
            piece = Piece.of(view, start, start + size)
            (found if len(set(view[start : start + size])) > 2 else dull).append(piece)
            if len(found) == _PIECES:
                break
        return cls(tuple(found or dull[:_PIECES]))

    def any_piece(self) -> Piece:
        """The one to ask for this time."""
        return secrets.choice(self.pieces)
