"""A picture's likeness: 64 bits that change little where the picture does.

Difference hash (N. Krawetz, 2013): shrunk to 9 x 8 grey pixels, a bit for each pixel that is darker
than its right neighbour. Survives scaling and recompression, not cropping; a mirror image's follows
from the picture's own, but for neighbours that are equally bright. `crops` knows cropped ones.
Must not know: storage, the database.
"""

from __future__ import annotations

import io

from PIL import Image

_WIDTH, _HEIGHT = 9, 8
_SIGN = 1 << 63
# Of 64 bits; unrelated pictures differ in about 32 of them.
NEAR_BITS = 5
# A picture of one colour has next to no gradients: its hash is near every other such picture's.
_TELLING_BITS = range(6, 59)


def likeness(picture: bytes) -> int:
    """The hash of a picture's file, as a signed 64-bit number.

    Raises:
        OSError: the bytes are no picture.
    """
    with Image.open(io.BytesIO(picture)) as opened:
        return likeness_of(opened)


def likeness_of(picture: Image.Image, box: tuple[float, float, float, float] | None = None) -> int:
    """The hash of a picture, or of its part `box`: left, top, right, bottom in pixels.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    small = picture.convert("L").resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS, box)
    pixels = small.tobytes()
    bits = 0
    for row in range(_HEIGHT):
        for column in range(_WIDTH - 1):
            place = row * _WIDTH + column
            bits = bits << 1 | (pixels[place] < pixels[place + 1])
    return bits - (1 << 64) if bits & _SIGN else bits


def mirrored(value: int) -> int:
    """The likeness of the same picture with left and right exchanged."""
    bits = 0
    for row in range(_HEIGHT):
        for column in range(_WIDTH - 1):
            # The same two pixels, met from the other side.
            bits = bits << 1 | (~value >> (8 * (_HEIGHT - 1 - row) + column) & 1)
    return bits - (1 << 64) if bits & _SIGN else bits


def is_telling(value: int) -> bool:
    """Whether a likeness tells pictures apart at all."""
    return (value % (1 << 64)).bit_count() in _TELLING_BITS


def telling(value: int | None) -> int | None:
    """A likeness by which a picture can be known again; None where it has none."""
    return value if value is not None and is_telling(value) else None


def as_hex(value: int) -> str:
    """16 hexadecimal digits."""
    return f"{value % (1 << 64):016x}"


def from_hex(text: str) -> int:
    """What `as_hex` wrote.

    Raises:
        ValueError: it is not 16 hexadecimal digits.
    """
    if len(text) != 16:
        raise ValueError("must be 16 hexadecimal digits")
    value = int(text, 16)
    return value - (1 << 64) if value & _SIGN else value
