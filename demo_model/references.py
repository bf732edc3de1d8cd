"""The true pictures, small, for the evaluation: what each name looks like in both styles.

`references.npz` holds, for each name, the flat drawing with its transparency at 32x32 (so that any
background can be put behind it) and the line art in grey. Written by `python references.py`,
which needs the dataset's packages; reading needs only the file. `references-large.png` holds the
names of `HELD_OUT` at twice the model's side, for what enlarges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from demo_model.common import (
    BACKGROUNDS,
    HELD_OUT,
    LARGE_REFERENCES,
    REFERENCES,
    SIZE,
    available_names,
    draw,
    held_out,
)

SIDE = 32
LARGE = 2 * SIZE
_ROW = 5  # of the large ones


@dataclass(frozen=True)
class References:
    """names: N; ink: float32 (N, 32, 32, 3), colour x opacity, 0..255; see `flat`."""

    names: list[str]
    ink: NDArray[np.float32]
    clear: NDArray[np.float32]
    line: NDArray[np.float32]

    def flat(self, background: str) -> NDArray[np.float32]:
        """All names on one background: float32 (N, 32, 32, 3), 0..255."""
        colour = np.array(ImageColor.getrgb(BACKGROUNDS[background]), np.float32)
        return self.ink + self.clear[..., None] * colour

    def line_art(self) -> NDArray[np.float32]:
        """All names as black on white: float32 (N, 32, 32, 3), 0..255."""
        return np.repeat(self.line[..., None], 3, axis=-1)


def shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture at 32x32 by averaging. uint8 (H, W, 3) to float32 (32, 32, 3)."""
    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.float32)


def nearest(pixels: NDArray[np.uint8], candidates: NDArray[np.float32]) -> NDArray[np.intp]:
    """Indices of `candidates` (N, 32, 32, 3), the nearest in L2 first."""
    distances = ((candidates - shrunk(pixels)) ** 2).sum(axis=(1, 2, 3))
    return np.argsort(distances)


@dataclass(frozen=True)
class Large:
    """One true picture: uint8 (LARGE, LARGE, 3)."""

    name: str
    background: str
    pixels: NDArray[np.uint8]


def large() -> list[Large]:
    """The names that are held out, each on another background, from the committed file."""
    sheet = np.asarray(Image.open(LARGE_REFERENCES).convert("RGB"))
    found, grounds = [], list(BACKGROUNDS)
    for number, name in enumerate(load().names[HELD_OUT]):
        top, left = (place * LARGE for place in divmod(number, _ROW))
        pixels = sheet[top : top + LARGE, left : left + LARGE]
        found.append(Large(name, grounds[number % len(grounds)], pixels))
    return found


def load() -> References:
    """The committed file."""
    data = np.load(REFERENCES)
    return References(
        [str(name) for name in data["names"]],
        data["ink"].astype(np.float32),
        data["clear"].astype(np.float32) / 255,
        data["line"].astype(np.float32),
    )


def main() -> None:
    """Draw all names on two backgrounds; their difference gives the opacity."""
    names = available_names()
    ink, clear, line = [], [], []
    for name in names:
        white, grey = (shrunk(draw(name, ground, "flat")) for ground in ("white", "grey"))
        gap = 255 - np.array(ImageColor.getrgb(BACKGROUNDS["grey"]), np.float32)
        through = ((white - grey) / gap).mean(axis=-1).clip(0, 1)
        clear.append((through * 255).round())
        ink.append((white - through[..., None] * 255).clip(0, 255).round())
        line.append(shrunk(draw(name, "white", "line")).mean(axis=-1).round())
    arrays = {"ink": ink, "clear": clear, "line": line}
    packed = {key: np.stack(value).astype(np.uint8) for key, value in arrays.items()}
    np.savez_compressed(REFERENCES, names=np.array(names), **packed)  # type: ignore[arg-type]
    print(f"{REFERENCES.name}: {REFERENCES.stat().st_size} bytes, {len(names)} names")
    save_large()


def save_large() -> None:
    """Draw what `large` reads."""
    grounds, names = list(BACKGROUNDS), held_out()
    sheet = Image.new("RGB", (_ROW * LARGE, -(-len(names) // _ROW) * LARGE))
    for number, name in enumerate(names):
        pixels = draw(name, grounds[number % len(grounds)], "flat", side=LARGE)
        top, left = (place * LARGE for place in divmod(number, _ROW))
        sheet.paste(Image.fromarray(pixels), (left, top))
    sheet.save(LARGE_REFERENCES, optimize=True)
    size = LARGE_REFERENCES.stat().st_size
    print(f"{LARGE_REFERENCES.name}: {size} bytes, {len(names)} names")


if __name__ == "__main__":
    main()
