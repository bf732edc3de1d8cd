"""Files that other tools can read, with their settings inside, the same every time."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from sdxl_contract.request import OutputFormat
from sdxl_contract.result import LoraReport
from sdxl_worker.answering.image_file import encode_image, parameters_text
from testkit.worker import photo_like

USER_COMMENT = 0x9286


def text(**changes: object) -> str:
    """The parameters of one picture, with `changes`."""
    values: dict[str, object] = {
        "prompt": "a red apple",
        "negative_prompt": "",
        "steps": 28,
        "scheduler": "euler",
        "cfg": 5.5,
        "seed": 7,
        "size": (64, 48),
        "base_model": "sdxl-base",
        "loras": [],
    }
    return parameters_text(**(values | changes))  # type: ignore[arg-type]


def report(**changes: object) -> LoraReport:
    """A LoRA's report, with `changes`."""
    values: dict[str, object] = {
        "sha256": "ab" * 32,
        "scale": 0.8,
        "format": "kohya",
        "rank": 4,
        "modules_matched": 1,
        "modules_unmatched": [],
    }
    return LoraReport.model_validate(values | changes)


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def written(image: Image.Image) -> str:
    """The parameters as a reader finds them."""
    if image.format == "PNG":
        return str(image.info["parameters"])
    # As readers do: in the directory called Exif, and nowhere else.
    comment = image.getexif().get_ifd(0x8769)[USER_COMMENT]
    assert comment.startswith(b"UNICODE\0")
    return str(comment[8:].decode("utf-16-be"))


def test_parameters_are_in_the_form_that_others_read() -> None:
    assert text(negative_prompt="blurry") == (
        "a red apple\nNegative prompt: blurry\n"
        "Steps: 28, Sampler: euler, CFG scale: 5.5, Seed: 7, Size: 64x48, Model: sdxl-base"
    )


def test_loras_are_named_with_scale_and_hash() -> None:
    lines = text(loras=[report(name="style"), report(sha256="cd" * 32, scale=-1)]).splitlines()

    assert lines[0] == "a red apple <lora:style:0.8> <lora:cdcdcdcdcdcd:-1>"
    assert lines[-1].endswith('Lora hashes: "style: abababababab, cdcdcdcdcdcd: cdcdcdcdcdcd"')


# The rules of A1111's reader: one line of `key: value` pairs, values perhaps quoted as JSON text.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
TAG = re.compile(r"<lora:([^:>]+):([^:>]+)>")


def read_by_others(parameters: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and facts, as a reader takes them apart."""
    *above, last = parameters.split("\n")
    prompt, _, negative = "\n".join(above).partition("\nNegative prompt: ")
    facts = {key: json.loads(value) if value.startswith('"') else value
             for key, value in PAIR.findall(last)}  # fmt: skip
    return prompt, negative, facts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("style", "style"),
        ('a "quoted", name', "a _quoted__ name"),
        ("with:colon", "with_colon"),
        ("<lora:x:9>", "_lora_x_9_"),
        ("two\nSteps: 3", "two_Steps_ 3"),
        ("back\\slash", "back_slash"),
        ("\u6771\u4eac \U0001f34e", "\u6771\u4eac \U0001f34e"),
        (" ", "abababababab"),
        ("", "abababababab"),
    ],
)
def test_no_name_of_a_lora_breaks_the_text(name: str, shown: str) -> None:
    loras = [report(name=name), report(name="b", sha256="cd" * 32, scale=-1)]
    parameters = text(loras=loras, negative_prompt='no "b", x: 1', base_model="my, own: model")
    prompt, negative, facts = read_by_others(parameters)

    assert TAG.findall(prompt) == [(shown, "0.8"), ("b", "-1")]
    assert negative == 'no "b", x: 1'
    assert facts["Lora hashes"] == f"{shown}: abababababab, b: cdcdcdcdcdcd"
    assert (facts["Model"], facts["Steps"], facts["Seed"]) == ("my, own: model", "28", "7")


@pytest.mark.parametrize("kind", list(OutputFormat))
def test_control_characters_do_not_get_into_a_file(kind: OutputFormat) -> None:
    parameters = text(prompt="a\0b\x1b[31m\tc\r\nd\re", negative_prompt="\x7f\x85n")
    image = decoded(encode_image(photo_like(32), kind, parameters))

    assert written(image).startswith("a b [31m\tc\nd\ne\nNegative prompt:   n\nSteps: 28, ")


def test_the_comment_of_a_jpeg_has_the_type_that_the_standard_says() -> None:
    data = encode_image(photo_like(32), OutputFormat.JPEG, text())
    directory = data[data.index(b"Exif\0\0") + 6 :]

    assert directory[:8] == b"MM\0*\0\0\0\x08"
    assert directory[26:32] == b"\0\x01\x92\x86\0\x07"  # one entry: UserComment, UNDEFINED


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (8, 200), (1, 1)])
def test_a_png_has_the_very_pixels(size: tuple[int, int]) -> None:
    image = photo_like(200).crop((0, 0, *size))

    back = decoded(encode_image(image, OutputFormat.PNG, text()))

    assert (back.format, back.mode, back.size) == ("PNG", "RGB", size)
    assert back.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("kind", "name"), [(OutputFormat.JPEG, "JPEG"), (OutputFormat.WEBP, "WEBP")]
)
def test_lossy_formats_are_close_and_smaller(kind: OutputFormat, name: str) -> None:
    image = photo_like(256)
    data = encode_image(image, kind, text())
    back = decoded(data)

    difference = np.asarray(back, dtype=float) - np.asarray(image, dtype=float)
    assert (back.format, back.size) == (name, image.size)
    assert np.sqrt((difference**2).mean()) < 8
    assert len(data) < len(encode_image(image, OutputFormat.PNG, text()))


@pytest.mark.parametrize("kind", list(OutputFormat))
@pytest.mark.parametrize(
    "prompt",
    [
        "plain",
        "café",
        "\u6771\u4eac \u0645\u0631\u062d\u0628\u0627 \U0001f34e",
        'quotes " and\nnew lines, <lora:x:1>',
        "x" * 4000,
        "\U0001f34e" * 4000,
    ],
    ids=["plain", "latin-1", "scripts", "signs", "long", "long and wide"],
)
def test_the_parameters_come_back_in_every_script(kind: OutputFormat, prompt: str) -> None:
    parameters = text(prompt=prompt, negative_prompt=prompt)
    image = decoded(encode_image(photo_like(32), kind, parameters))

    assert written(image) == parameters


@pytest.mark.parametrize("kind", list(OutputFormat))
def test_the_same_picture_gives_the_same_bytes(kind: OutputFormat) -> None:
    files = {encode_image(photo_like(64), kind, text()) for _ in range(2)}

    assert len(files) == 1
    assert encode_image(photo_like(64), kind, text(seed=8)) not in files
