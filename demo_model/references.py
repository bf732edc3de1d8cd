"""The true pictures, small, for the evaluation: what each name looks like in both styles.

`references.npz` holds, for each name, the flat drawing with its transparency at 32x32 (so that any
background can be put behind it) and the line art in grey. Written by `python references.py`,
which needs the dataset's packages; reading needs only the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from demo_model.common import BACKGROUNDS, REFERENCES, available_names, draw

SIDE = 32


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


if __name__ == "__main__":
    main()
