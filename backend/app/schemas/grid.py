"""An X/Y grid: one picture for each pair of two parameters' values."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from app.schemas.common import In, Side, Storable
from app.schemas.content import Cfg, GenerateIn, LoraUse, Sampler, Scale, Seed, Steps

GRID_MAX = 100


class GridParameter(StrEnum):
    """What may differ from cell to cell."""

    PROMPT = "prompt"
    WORDS = "words"
    SEED = "seed"
    STEPS = "steps"
    CFG = "cfg"
    SCHEDULER = "scheduler"
    SIZE = "size"
    WHICH_LORA = "which_lora"
    LORA = "lora"


_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_SIDE: TypeAdapter[int] = TypeAdapter(Side)


def _sides(text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("must be WIDTHxHEIGHT in px, such as 1024x768")
    return int(found[1]), int(found[2])


def _size(text: str) -> str:
    width, height = _sides(text)
    for side in (width, height):
        _SIDE.validate_python(side)
    return f"{width}x{height}"


# A number where the parameter is one, a text, a LoRA as among `loras`, or null: no LoRA.
Value = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number"},
                {"type": "string"},
                {"$ref": "#/components/schemas/LoraUse"},
                {"type": "null"},
            ]
        }
    ),
]
_VALUES: dict[GridParameter, TypeAdapter[list[Any]]] = {
    GridParameter.PROMPT: TypeAdapter(list[Storable]),
    GridParameter.WORDS: TypeAdapter(list[Storable]),
    GridParameter.SEED: TypeAdapter(list[Seed]),
    GridParameter.STEPS: TypeAdapter(list[Steps]),
    GridParameter.CFG: TypeAdapter(list[Cfg]),
    GridParameter.SCHEDULER: TypeAdapter(list[Sampler]),
    GridParameter.SIZE: TypeAdapter(list[Annotated[str, AfterValidator(_size)]]),
    GridParameter.WHICH_LORA: TypeAdapter(list[LoraUse | None]),
    GridParameter.LORA: TypeAdapter(list[Scale]),
}
# These choose what others change a part of.
_FIRST = (GridParameter.PROMPT, GridParameter.WHICH_LORA)
_SETS = {
    GridParameter.PROMPT: ("prompt",),
    GridParameter.WORDS: ("prompt",),
    GridParameter.SIZE: ("width", "height"),
    GridParameter.LORA: (),
    GridParameter.WHICH_LORA: (),
}


def _wrong(place: tuple[str | int, ...], message: str, value: object = None) -> ValidationError:
    """An error at `place`, which pydantic puts behind the place of the validator that raises it."""
    found = PydanticCustomError("axis", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        "grid", [InitErrorDetails(type=found, loc=place, input=value)]
    )


def _is_same(one: LoraUse, other: LoraUse) -> bool:
    return (one.lora_model_id, one.name) == (other.lora_model_id, other.name)


class GridAxis(In):
    """A parameter and its values.

    - `prompt`: whole prompts. The batch then has no `prompts`.
    - `words`: the first value is looked for in the prompt, as whole words, and each value takes its
      place, the first one included.
    - `size`: WIDTHxHEIGHT.
    - `which_lora`: LoRAs as in `loras`, or null for none. A cell has this one, none of the others.
    - `lora`: scales of the LoRA with this id; without an id, of the one that `which_lora` chooses.
    """

    model_config = ConfigDict(extra="forbid")

    parameter: GridParameter
    lora_model_id: uuid.UUID | None = Field(default=None, description="of a `lora` axis")
    values: list[Value] = Field(min_length=1, max_length=GRID_MAX)

    @field_validator("values", mode="after")
    @classmethod
    def _of_its_parameter(cls, values: list[Any], info: ValidationInfo) -> list[Any]:
        parameter = info.data.get("parameter")
        if parameter is None:  # it is wrong itself
            return values
        kind = _VALUES[parameter]
        read = kind.validate_python(values)
        if parameter is GridParameter.WORDS and not read[0].strip():
            raise _wrong((0,), "is looked for in the prompt: it must not be blank", read[0])
        kept: list[Any] = kind.dump_python(read, mode="json", exclude_none=True)
        seen: set[str] = set()
        for place, value in enumerate(kept):
            text = json.dumps(value, sort_keys=True)
            if text in seen:
                raise _wrong((place,), "is there twice: all values must be different")
            seen.add(text)
        return kept

    @model_validator(mode="after")
    def _has_a_lora(self) -> GridAxis:
        if self.lora_model_id is not None and self.parameter is not GridParameter.LORA:
            raise _wrong(("lora_model_id",), "goes only with the parameter lora")
        return self

    @cached_property
    def read(self) -> list[Any]:
        """The values as what they stand for."""
        return _VALUES[self.parameter].validate_python(self.values)

    def sets(self, field: str) -> bool:
        """Whether `field` of a content, one of its plain ones, is what differs along this axis."""
        return field in _SETS.get(self.parameter, (self.parameter.value,))

    def on(self, asked: GenerateIn, place: int, chosen: LoraUse | None) -> GenerateIn:
        """`asked` with this parameter at its value at `place`.

        `chosen`: the LoRA that the other axis has chosen, if it does.
        """
        value = self.read[place]
        match self.parameter:
            case GridParameter.SIZE:
                width, height = _sides(value)
                return asked.model_copy(update={"width": width, "height": height})
            case GridParameter.WORDS:
                return asked.model_copy(
                    update={"prompt": self._replaced(asked.prompt or "", place)}
                )
            case GridParameter.WHICH_LORA:
                return asked.model_copy(update={"loras": self._one_of(asked.loras, value)})
            case GridParameter.LORA:
                if self.lora_model_id is not None:
                    chosen = LoraUse(lora_model_id=self.lora_model_id)
                return asked.model_copy(update={"loras": _at_scale(asked.loras, chosen, value)})
        return asked.model_copy(update={self.parameter.value: value})

    def _replaced(self, prompt: str, place: int) -> str:
        sought = self.values[0].strip()
        # Whole words: "red" is no part of "hundred".
        found = re.compile(rf"(?<!\w){re.escape(sought)}(?!\w)")
        if not found.search(prompt):
            raise _wrong(("values", 0), "is not in the prompt, as whole words", sought)
        return found.sub(lambda _: self.values[place].strip(), prompt)

    def _one_of(self, given: list[LoraUse], chosen: LoraUse | None) -> list[LoraUse]:
        of_axis = [use for use in self.read if use is not None]
        return [
            *(use for use in given if not any(_is_same(use, one) for one in of_axis)),
            *([] if chosen is None else [chosen]),
        ]


def _at_scale(given: list[LoraUse], which: LoraUse | None, scale: float) -> list[LoraUse]:
    """`given` with one of them at `scale`, which is there then in any case; None: as it is."""
    if which is None:
        return given
    use = which.model_copy(update={"scale": scale})
    others = [one for one in given if not _is_same(one, which)]
    place = next((n for n, one in enumerate(given) if _is_same(one, which)), len(others))
    return [*others[:place], use, *others[place:]]


class Cell(NamedTuple):
    """A place in the grid, and what is asked there."""

    column: int
    row: int
    asked: GenerateIn


class Grid(In):
    """Two axes: `x` is across, `y` is down."""

    model_config = ConfigDict(extra="forbid")

    x: GridAxis
    y: GridAxis

    @model_validator(mode="after")
    def _fits(self) -> Grid:
        x, y = self.x, self.y
        both_words = x.parameter is y.parameter is GridParameter.WORDS
        if both_words and x.values[0].strip() == y.values[0].strip():
            raise _wrong(("y", "values", 0), "is looked for by x already", y.values[0])
        same = (x.parameter, x.lora_model_id) == (y.parameter, y.lora_model_id)
        if same and not both_words:
            raise PydanticCustomError("grid", "x and y must be two different parameters")
        for name, axis, other in (("x", x, y), ("y", y, x)):
            if axis.parameter is not GridParameter.LORA:
                continue
            chooses = other.parameter is GridParameter.WHICH_LORA
            if axis.lora_model_id is None and not chooses:
                raise _wrong((name, "lora_model_id"), "is required, unless which_lora is an axis")
            chosen = [use.lora_model_id for use in other.read if use] if chooses else []
            if axis.lora_model_id is not None and axis.lora_model_id in chosen:
                raise _wrong((name, "lora_model_id"), "is one of the other axis's LoRAs")
        if self.size > GRID_MAX:
            raise PydanticCustomError(
                "grid",
                "{size} cells are too many: at most {most}",
                {"size": self.size, "most": GRID_MAX},
            )
        return self

    @property
    def size(self) -> int:
        """How many cells."""
        return len(self.x.values) * len(self.y.values)

    @property
    def prompts(self) -> list[str] | None:
        """The prompts that are an axis's values; None where none has them."""
        for axis in (self.x, self.y):
            if axis.parameter is GridParameter.PROMPT:
                return axis.values
        return None

    def cells(self, asked: GenerateIn) -> Iterator[Cell]:
        """Each cell's request, row by row.

        Raises:
            ValidationError: words that are looked for are not in the prompt.
        """
        axes = {"x": self.x, "y": self.y}
        in_order = sorted(axes, key=lambda name: axes[name].parameter not in _FIRST)
        for row in range(len(self.y.values)):
            for column in range(len(self.x.values)):
                one, chosen = asked, None
                for name in in_order:
                    axis, place = axes[name], column if name == "x" else row
                    try:
                        one = axis.on(one, place, chosen)
                    except ValidationError as error:
                        found = error.errors()[0]
                        raise _wrong(("grid", name, *found["loc"]), found["msg"]) from None
                    if axis.parameter is GridParameter.WHICH_LORA:
                        chosen = axis.read[place]
                yield Cell(column, row, one)

    def field_of(self, cell: Cell, field: str) -> str | None:
        """The axis's value that gave a cell's `field`; None where it is the same in every cell."""
        for name, axis, place in (("x", self.x, cell.column), ("y", self.y, cell.row)):
            value = f"grid.{name}.values[{place}]"
            if axis.sets(field):
                return value
            named = re.match(r"loras(?:\[(\d+)\])?", field)
            if named is None:
                continue
            use = None if named[1] is None else cell.asked.loras[int(named[1])]
            if axis.parameter is GridParameter.WHICH_LORA:
                if use is None or (axis.read[place] and _is_same(use, axis.read[place])):
                    return value
                continue
            own = axis.lora_model_id
            if own is not None and (use is None or use.lora_model_id == own):
                return f"grid.{name}.lora_model_id"
        return None
