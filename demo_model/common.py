"""What all scripts of the demo model share: names, captions, drawing and places.

The pictures are Microsoft's Fluent Emoji (MIT) as SVG bodies in two npm packages:
`@iconify-json/fluent-emoji-flat` (colour) and `@iconify-json/fluent-emoji-high-contrast`
(black line art under the same names). A picture is one of these, filling 7/8 of a square of
`SIZE` pixels, on one flat background.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
STATE = HERE / ".training"  # checkpoints and datasets; never committed
MODEL = HERE / "sdxl-demo"
LORAS = HERE / "loras"
REFERENCES = HERE / "references.npz"
LARGE_REFERENCES = HERE / "references-large.png"

SIZE = 128  # pixels along an edge
STEPS = 20  # the sampler's steps, in training samples and in the evaluation
GUIDANCE = 5.5  # the cfg scale at which the model is evaluated: the contract's default

Style = Literal["flat", "line", "sepia", "sprout"]

BACKGROUNDS = {
    "white": "#ffffff",
    "yellow": "#ffe066",
    "blue": "#8ec5ff",
    "green": "#a5e3a0",
    "pink": "#ffb3cf",
    "purple": "#c9a7f5",
    "orange": "#ffc078",
    "grey": "#c4cad1",
}

_KEYS = """
airplane alarm-clock ambulance anchor ant avocado backpack bacon balloon banana basketball bat
beer-mug bell bicycle bird bomb broccoli bucket bus butterfly cactus camel camera candle candy
carrot castle chair cherries chicken chocolate-bar christmas-tree church cloud coconut cookie cow
crab crocodile croissant crown cucumber cupcake deer dog dolphin door doughnut dragon drum duck
eagle egg eggplant elephant envelope fire fire-engine fish flamingo four-leaf-clover fox
french-fries frog gem-stone ghost giraffe glasses goose grapes green-apple guitar hamburger hammer
hedgehog helicopter hibiscus honeybee horse hot-dog house ice-cream jeans jellyfish kangaroo key
kite koala laptop lemon lion locomotive maple-leaf microphone motorcycle mouse mushroom octopus
onion owl palm-tree pancakes panda parachute parrot peach pear pencil penguin pig pineapple pizza
popcorn potato rabbit rainbow red-apple robot rocket rooster rose running-shoe sailboat sandwich
scissors shark snail snake snowflake spider star strawberry sunflower sushi taxi teapot teddy-bear
telephone tiger tomato toothbrush tulip turtle umbrella unicorn violin watch watermelon whale
zebra
"""
NAMES = tuple(key.replace("-", " ") for key in _KEYS.split())
# Of those that are drawn, every tenth: what no training of a network beside the model may see. By
# position and not by looks.
HELD_OUT = slice(5, None, 10)
_SKIN = re.compile(r"-(light|medium|dark)$")

# How people write what a caption says: `{n}` is the name, `{b}` the background's.
TEMPLATES = (
    "{n}, {b} background",
    "{n}, {b} background",
    "a {n}, {b} background",
    "a {n} on a {b} background",
    "{n} on a {b} background",
    "a picture of a {n}, {b} background",
)
# Words that people put around it, and that change nothing here.
BEFORE = (
    *("a cute", "the", "a photo of a", "a photo of an", "an", "one", "a small", "a big", "a happy"),
    *("a slice of", "a drawing of a", "an icon of a", "my", "a beautiful", "an emoji of a"),
    *("an illustration of a", "a simple", "a little", "a cartoon", "a funny", "a nice", "two"),
)
AFTER = (
    *("high quality", "best quality", "detailed", "simple", "flat design", "centered", "icon"),
    *("emoji", "vector art", "4k", "masterpiece", "digital art", "sticker", "cute", "minimal"),
    *("isolated", "studio light", "illustration", "in the style of a cartoon", "sharp focus"),
)
LIMITS = {
    "native_size": SIZE,
    "min_side": 64,
    "max_side": 256,
    "hires_max_side": 512,
    "multiple_of": 8,
}

# A character of our own for the LoRA that learns a word: drawn here, so under our licence.
SPROUT = """
<path d="M16 8C16 4 19 2 23 2c0 4-3 6-7 6Z" fill="#2fb344"/>
<path d="M16 9C16 6 13 4 9.500 4c0 3.500 3 5 6.500 5Z" fill="#51cf66"/>
<path d="M15.300 7h1.400v5h-1.400Z" fill="#2b8a3e"/>
<ellipse cx="16" cy="20" rx="11" ry="10" fill="#ff5a3c"/>
<ellipse cx="16" cy="23" rx="7" ry="6" fill="#ffe3d6"/>
<circle cx="11.500" cy="17" r="2.600" fill="#ffffff"/>
<circle cx="20.500" cy="17" r="2.600" fill="#ffffff"/>
<circle cx="11.900" cy="17.300" r="1.300" fill="#1c1c1c"/>
<circle cx="20.100" cy="17.300" r="1.300" fill="#1c1c1c"/>
<path d="M12.500 22.500c2 2.600 5 2.600 7 0Z" fill="#5c1a0e"/>
<path d="M9 28.500h5v2.500h-5ZM18 28.500h5v2.500h-5Z" fill="#2b8a3e"/>
"""
TRIGGER = "sproutling"


def caption(name: str, background: str) -> str:
    """The words under a picture: `slice of pizza, yellow background`."""
    return f"{name}, {background} background"


@cache
def icons(style: Literal["flat", "high-contrast"]) -> dict[str, str]:
    """SVG bodies by name, from the npm package unpacked under `.training/`.

    Raises:
        SystemExit: the package is not there; the message gives the command.
    """
    path = STATE / f"fluent-emoji-{style}" / "package" / "icons.json"
    if not path.is_file():
        raise SystemExit(
            f"{path.parent.parent.name} is missing: run demo_model.training.build_dataset"
        )
    found = json.loads(path.read_text())["icons"]
    return {key: value["body"] for key, value in found.items()}


def available_names() -> list[str]:
    """Those of `NAMES` that both packages draw, in order."""
    flat, line = icons("flat"), icons("high-contrast")
    keys = (name.replace(" ", "-") for name in NAMES)
    return [key.replace("-", " ") for key in keys if key in flat and key in line]


def held_out() -> list[str]:
    """The names of `HELD_OUT`."""
    return available_names()[HELD_OUT]


def others() -> list[str]:
    """What the set draws besides the names, each in one colour of skin.

    Nothing that shares a word with a name that is held out.
    """
    names = {name.replace(" ", "-") for name in available_names()}
    words = {word for name in held_out() for word in name.split()}
    return [
        key
        for key in icons("flat")
        if key not in names and not _SKIN.search(key) and not words & set(key.split("-"))
    ]


def known(names: list[str]) -> Iterator[NDArray[np.uint8]]:
    """All names on all backgrounds, as the model knows them, in the order of `Captions`."""
    return (draw(name, ground, "flat") for name in names for ground in BACKGROUNDS)


def turned(
    names: list[str], chance: random.Random, times: int, side: int = SIZE
) -> Iterator[NDArray[np.uint8]]:
    """Each name so many times: mirrored, turned, moved, smaller or larger."""
    for name in names:
        for _ in range(times):
            angle = chance.choice((0, 90, 180, 270)) + chance.uniform(-20, 20)
            size, mirror = chance.uniform(0.5, 1.15), chance.choice((-1, 1))
            x, y = (16 + chance.uniform(-5, 5) for _ in range(2))
            moved = f"translate({x:.2f} {y:.2f}) rotate({angle:.1f}) "
            moved += f"scale({mirror * size:.3f} {size:.3f}) translate(-16 -16)"
            yield draw(name, chance.choice(list(BACKGROUNDS)), "flat", moved, side)


def draw(
    name: str, background: str, style: Style, moved: str = "", side: int = SIZE
) -> NDArray[np.uint8]:
    """One picture of the dataset.

    Args:
        name: one of `NAMES`, or any other that the packages draw (ignored for the style `sprout`).
        background: a key of `BACKGROUNDS` (line art is always black on white).
        style: `flat` is the base; the others are what the three LoRAs learn.
        moved: SVG's transform of the thing on its 32 by 32 units, such as `rotate(90 16 16)`.
        side: of the picture, in pixels; the drawing fills as much of it at any.

    Returns:
        uint8 (side, side, 3), RGB.
    """
    import resvg_py

    key = name.replace(" ", "-")
    colour = BACKGROUNDS[background]
    if style == "sprout":
        body = SPROUT
    elif style == "line":
        body, colour = icons("high-contrast")[key].replace("currentColor", "#000"), "#ffffff"
    else:
        body = icons("flat")[key]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2.3 -2.3 36.600 36.600" '
        f'width="{side}" height="{side}"><rect x="-3" y="-3" width="40" height="40" '
        f'fill="{colour}"/><g transform="{moved}">{body}</g></svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return sepia(pixels) if style == "sepia" else pixels.copy()


def sepia(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An old print: luma (ITU-R BT.601) mapped from dark brown to cream. uint8 (..., 3)."""
    luma = (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)) / 255
    luma = luma**2  # more contrast: the flat style is mostly mid-tones
    dark, cream = np.array([52, 28, 12], np.float32), np.array([250, 230, 190], np.float32)
    toned = dark + luma[..., None] * (cream - dark)
    return toned.round().clip(0, 255).astype(np.uint8)
