"""By what a picture is known again after somebody cropped it: the likenesses of its crops.

A likeness moves with every pixel that an edge loses, so those of a bounded set of crops are kept,
in steps so fine that whatever lies between two of them is near one: from one side, from two that
face each other, from all four alike, and the squares of what is no square. Each also mirrored, from
the mirrored pixels: `likeness.mirrored` errs wherever two neighbours are equally bright.

Another picture of the same thing (another seed, say) is near its crops, too. Its proportions tell:
a crop is only a crop's likeness in a picture with that crop's proportions. Cutting all sides alike
leaves proportions as they were; there fewer bits may differ.
Must not know: storage, the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageOps

from app.models.takedown import SHAPE_SLACK, Known, shape_of
from app.services.inputs.likeness import NEAR_BITS, is_telling, likeness_of
from app.services.inputs.reading import as_seen, opened

# Shares of a side. What is cut less is near the whole picture, or a picture of its proportions.
_ONE_SIDE = tuple(0.025 + 0.02 * step for step in range(6))  # to 12.5 %
_SIDES_ALIKE = tuple(0.015 * step for step in range(1, 9))  # to 12 % of each
_CENTRED_BITS = 3
_SIDE = 384  # px, the longer side: enough for a likeness, and quickly shrunk a hundred times


class Cut(NamedTuple):
    """What is cut off, in shares of the width (left, right) and the height (top, bottom)."""

    left: float = 0.0
    right: float = 0.0
    top: float = 0.0
    bottom: float = 0.0

    def mirrored(self) -> Cut:
        """The same of the mirrored picture."""
        return self._replace(left=self.right, right=self.left)


def known_by_crops(data: bytes) -> list[Known]:
    """By what a picture's file, its mirror image and their crops are known: about a hundred.

    Raises:
        ImageLoadFailed: no picture, or one beyond the bounds for strangers' pictures.
        OSError, ValueError: of a mode that has no way to grey.
    """
    with opened(data) as picture:
        grey = as_seen(picture).convert("L")
    size = grey.size
    grey.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    mirror = ImageOps.mirror(grey)
    found = []
    for cut, bits in _cuts(*size):
        shape = shape_of(size[0] * (1 - cut.left - cut.right), size[1] * (1 - cut.top - cut.bottom))
        for one, of_it in ((grey, cut), (mirror, cut.mirrored())):
            value = _likeness(one, of_it)
            if is_telling(value):
                found.append(Known(value, bits, shape if any(cut) else None))
    return list(dict.fromkeys(found))


def _cuts(width: int, height: int) -> Iterator[tuple[Cut, int]]:
    """Each with the bits in which a picture may differ from it."""
    yield Cut(), NEAR_BITS
    for share in _ONE_SIDE:
        for side in Cut._fields:
            yield Cut(**{side: share}), NEAR_BITS
    for share in _SIDES_ALIKE:
        yield Cut(left=share, right=share), NEAR_BITS
        yield Cut(top=share, bottom=share), NEAR_BITS
        yield Cut(share, share, share, share), _CENTRED_BITS
    if shape_of(width, height) > 1 + SHAPE_SLACK:
        rest = 1 - min(width, height) / max(width, height)
        for before in (0.0, rest / 2, rest):
            after = rest - before
            is_wide = width > height
            yield (Cut(before, after) if is_wide else Cut(0, 0, before, after)), NEAR_BITS


def _likeness(grey: Image.Image, cut: Cut) -> int:
    width, height = grey.size
    box = (
        cut.left * width,
        cut.top * height,
        (1 - cut.right) * width,
        (1 - cut.bottom) * height,
    )
    return likeness_of(grey, box)
