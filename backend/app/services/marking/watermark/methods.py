"""Which watermarks there are, and one's name with its bits.

Duty: the seam that every method meets, and finding one by its name. A trained method (TrustMark,
PixelSeal) would be another class here. Must not know: files, contents.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from app.services.marking.watermark import spread
from app.services.marking.watermark.spread import Pixels

_PAYLOAD_DIGITS = 8


class Watermark(Protocol):
    """A way to write 32 bits into a picture. Blocking; used from several threads at once."""

    @property
    def name(self) -> str:
        """With its version: what has this name writes and reads the same for ever."""

    @property
    def smallest_side(self) -> int:
        """px; smaller pictures are left as they are."""

    def mark(self, pixels: Pixels, payload: int) -> Pixels:
        """`pixels` (height, width, 3) with `payload` in them; the same for the same input."""

    def read(self, pixels: Pixels) -> int | None:
        """The payload in anybody's pixels; None where there is none."""


class Spread:
    """See `spread`."""

    name = "spread-1"
    smallest_side = spread.SMALLEST_SIDE

    def mark(self, pixels: Pixels, payload: int) -> Pixels:
        """As the seam says."""
        return spread.mark(pixels, payload)

    def read(self, pixels: Pixels) -> int | None:
        """As the seam says."""
        found = spread.read(pixels)
        return None if found is None else found.payload


# By the setting's word. One that is replaced stays in `_READ`.
METHODS: dict[str, Watermark] = {"spread": Spread()}
_READ = {method.name: method for method in METHODS.values()}


class Mark(NamedTuple):
    """A method, and the bits: None where they are the picture's own."""

    method: str
    payload: int | None

    def __str__(self) -> str:
        """As a row and a receipt have it: `spread-1`, or `spread-1:0123abcd`."""
        return self.method if self.payload is None else f"{self.method}:{self.payload:08x}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """What `str` wrote.

        Raises:
            ValueError: it is no such text, or of a method that this version does not know.
        """
        method, colon, digits = text.partition(":")
        if method not in _READ or (colon and len(digits) != _PAYLOAD_DIGITS):
            raise ValueError("names no watermark that this version can write")
        return cls(method, int(digits, 16) if colon else None)


def method_named(name: str) -> Watermark:
    """The method of a `Mark`."""
    return _READ[name]


def find_mark(pixels: Pixels) -> Mark | None:
    """The first method's watermark that is in `pixels`."""
    for name, method in _READ.items():
        payload = method.read(pixels)
        if payload is not None:
            return Mark(name, payload)
    return None
