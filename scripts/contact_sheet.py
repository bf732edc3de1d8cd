"""A labelled grid of pictures: one row a prompt, one column a way of drawing it.

Must not know: where the pictures come from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 192  # px, side of one picture
GAP = 12  # px
LABEL = 26  # px, height of a line of text
INK, PAPER = "#1c2430", "#ffffff"


@dataclass(frozen=True)
class Tile:
    """One picture of the grid: an encoded image and the label under it."""

    data: bytes
    label: str


def contact_sheet(rows: Sequence[Sequence[Tile]], titles: Sequence[str]) -> Image.Image:
    """RGB image of `rows`, each below its title; every row needs the same number of tiles."""
    columns = len(rows[0])
    row_height = LABEL + CELL + LABEL + GAP
    width = GAP + columns * (CELL + GAP)
    sheet = Image.new("RGB", (width, GAP + len(rows) * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for number, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = GAP + number * row_height
        draw.text((GAP, top + 2), title, INK, font)
        for place, tile in enumerate(row):
            left = GAP + place * (CELL + GAP)
            picture = Image.open(io.BytesIO(tile.data)).convert("RGB")
            picture = picture.resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, top + LABEL))
            draw.rectangle(
                (left, top + LABEL, left + CELL - 1, top + LABEL + CELL - 1), None, "#d5dae2"
            )
            draw.text((left, top + LABEL + CELL + 4), tile.label, INK, font)
    return sheet
