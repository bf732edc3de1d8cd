"""Draw the dataset: every picture of every style, into `.training/pictures.npz`.

Fetches the two npm packages on the first run (needs `npm`), draws with resvg, takes a minute.
The arrays are `<style>`: uint8 (N, SIZE, SIZE, 3), and `<style>_captions`: N strings.
"""

from __future__ import annotations

import subprocess
import tarfile

import numpy as np

from demo_model.common import BACKGROUNDS, STATE, TRIGGER, available_names, caption, draw

VERSION = "1.2.6"  # of both npm packages


def fetch(style: str) -> None:
    """Unpack `@iconify-json/fluent-emoji-<style>` under `.training/`, unless it is there."""
    folder = STATE / f"fluent-emoji-{style}"
    if (folder / "package" / "icons.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    package = f"@iconify-json/fluent-emoji-{style}@{VERSION}"
    done = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
    )
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")


def main() -> None:
    """Draw all styles and say how many pictures each has."""
    for package in ("flat", "high-contrast"):
        fetch(package)
    names = available_names()
    arrays: dict[str, np.ndarray] = {}
    for style in ("flat", "line", "sepia", "sprout"):
        backgrounds = ["white"] if style == "line" else list(BACKGROUNDS)
        subjects = [TRIGGER] if style == "sprout" else names
        pairs = [(name, background) for name in subjects for background in backgrounds]
        arrays[style] = np.stack([draw(name, background, style) for name, background in pairs])
        arrays[f"{style}_captions"] = np.array([caption(*pair) for pair in pairs])
        print(f"{style}: {len(pairs)} pictures of {len(subjects)} things", flush=True)
    np.savez(STATE / "pictures.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
