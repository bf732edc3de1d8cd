"""A picture's edges as Canny finds them (1986), in NumPy.

Duty: Sobel's gradients of the grey picture by their sum |x| + |y|, thinned to their ridges; kept
where they are above `high`, or above `low` and joined to such. No blur before: that is the caller's
picture. Here, so that backend and worker find the same ones. Must not know: files, requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
# Of 22.5° and 67.5°, where a gradient's neighbour changes.
_LOW, _HIGH = 0.41421356, 2.41421356


def canny(picture: Image.Image, low: int, high: int) -> Image.Image:
    """White lines on black, RGB, as large as `picture`."""
    grey = np.asarray(picture.convert("L")).astype(np.int32)
    strength, ridge = _ridges(grey)
    found = _joined(ridge & (strength > low), strength > high)
    return Image.fromarray((found * 255).astype(np.uint8)).convert("RGB")


def _ridges(grey: Array) -> tuple[Array, Array]:
    """How steep each pixel is, and whether it is at least as steep as both beside it."""
    framed = np.pad(grey, 1, mode="edge")
    up, middle, down = framed[:-2], framed[1:-1], framed[2:]
    rows = up + 2 * middle + down
    across = rows[:, 2:] - rows[:, :-2]
    columns = framed[:, :-2] + 2 * framed[:, 1:-1] + framed[:, 2:]
    along = columns[2:] - columns[:-2]
    strength = np.abs(across) + np.abs(along)
    steep = np.pad(strength, 1)

    def beside(dy: int, dx: int) -> Array:
        height, width = strength.shape
        found: Array = steep[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        return found

    x, y = np.abs(across), np.abs(along)
    same_sign = (across < 0) == (along < 0)
    places = [
        (y < _LOW * x, (0, -1), (0, 1)),
        (y > _HIGH * x, (-1, 0), (1, 0)),
        (same_sign, (-1, -1), (1, 1)),
        (np.ones_like(same_sign), (-1, 1), (1, -1)),
    ]
    ridge = np.zeros(strength.shape, bool)
    left = np.ones(strength.shape, bool)
    for here, one, other in places:
        # Of two equals one is kept.
        is_ridge = (strength > beside(*one)) & (strength >= beside(*other))
        ridge |= left & here & is_ridge
        left &= ~here
    return strength, ridge


def _joined(weak: Array, strong: Array) -> Array:
    """The connected parts of `weak`, corners included, that touch `strong`.

    By labels that spread to their neighbours' least and jump: as many rounds as the logarithm of
    the longest line, whatever its turns.
    """
    count = int(weak.sum())
    places = np.full((weak.shape[0] + 1, weak.shape[1] + 2), -1, np.int64)
    inner = places[:-1, 1:-1]
    inner[weak] = np.arange(count)
    pairs = []
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        there = places[dy : dy + weak.shape[0], 1 + dx : 1 + dx + weak.shape[1]]
        both = (inner >= 0) & (there >= 0)
        pairs.append((inner[both], there[both]))
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    root = np.arange(count)
    while True:
        a, b = root[one], root[other]
        apart = a != b
        if not apart.any():
            break
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(jumped := root[root], root):
            root = jumped
    kept = np.zeros(count, bool)
    kept[root[inner[weak & strong]]] = True
    found = np.zeros(weak.shape, bool)
    found[weak] = kept[root]
    return found
