"""An X/Y grid: one picture for each pair of two parameters' values."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.schemas.common import In
from app.schemas.content import Cfg, GenerateIn, LoraUse, Scale, Seed, Steps

GRID_MAX = 100


class GridParameter(StrEnum):
    """What may differ from cell to cell."""

    SEED = "seed"
    STEPS = "steps"
    CFG = "cfg"
    LORA = "lora"


_VALUES: dict[GridParameter, TypeAdapter[Any]] = {
    GridParameter.SEED: TypeAdapter(Seed),
    GridParameter.STEPS: TypeAdapter(Steps),
    GridParameter.CFG: TypeAdapter(Cfg),
    GridParameter.LORA: TypeAdapter(Scale),
}


class GridAxis(In):
    """A parameter and its values; `lora` is the scale of the LoRA with this id."""

    model_config = ConfigDict(extra="forbid")

    parameter: GridParameter
    lora_model_id: uuid.UUID | None = Field(default=None, description="of a `lora` axis")
    values: list[float] = Field(min_length=1, max_length=GRID_MAX)

    @model_validator(mode="after")
    def _fits(self) -> GridAxis:
        if (self.parameter is GridParameter.LORA) != (self.lora_model_id is not None):
            raise PydanticCustomError(
                "axis", "send lora_model_id with parameter lora, and only then"
            )
        if len(set(self.values)) < len(self.values):
            raise PydanticCustomError("axis", "values must all be different")
        for value in self.values:
            try:
                _VALUES[self.parameter].validate_python(value)
            except ValidationError as error:
                raise PydanticCustomError(
                    "axis",
                    "values: {value} is no {parameter}: {why}",
                    {
                        "value": f"{value:g}",
                        "parameter": "LoRA scale" if self.lora_model_id else self.parameter.value,
                        "why": error.errors()[0]["msg"].removeprefix("Input "),
                    },
                ) from None
        return self

    def on(self, asked: GenerateIn, value: float) -> GenerateIn:
        """`asked` with this parameter at `value`."""
        if self.parameter is not GridParameter.LORA:
            changed = _VALUES[self.parameter].validate_python(value)
            return asked.model_copy(update={self.parameter.value: changed})
        use = LoraUse(lora_model_id=self.lora_model_id, scale=value)
        others = [one for one in asked.loras if one.lora_model_id != self.lora_model_id]
        place = next(
            (n for n, one in enumerate(asked.loras) if one.lora_model_id == self.lora_model_id),
            len(others),
        )
        return asked.model_copy(update={"loras": [*others[:place], use, *others[place:]]})


class Grid(In):
    """Two axes: `x` is across, `y` is down."""

    model_config = ConfigDict(extra="forbid")

    x: GridAxis
    y: GridAxis

    @model_validator(mode="after")
    def _fits(self) -> Grid:
        if (self.x.parameter, self.x.lora_model_id) == (self.y.parameter, self.y.lora_model_id):
            raise PydanticCustomError("grid", "x and y must be two different parameters")
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

    def cells(self, asked: GenerateIn) -> Iterator[GenerateIn]:
        """Each cell's request, row by row."""
        for down in self.y.values:
            for across in self.x.values:
                yield self.y.on(self.x.on(asked, across), down)
