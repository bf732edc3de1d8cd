"""Text that the database can hold, numbers that are numbers, and a page of things."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from sdxl_contract.limits import PROMPT_MAX_CHARS

Item = TypeVar("Item")
SIDE_MAX = 16384  # px; what the loaded model draws is less


def storable(text: str) -> str:
    """`text` itself.

    Raises:
        ValueError: the database cannot hold it.
    """
    if "\x00" in text:
        raise ValueError("must not hold a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode (it holds half a surrogate pair)") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text.strip()


def _number(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("must be a number, not text and not true or false")
    return value


# In the schema that programs read, bounds are seen only where they come before a validator of ours.

# Of JSON, where a number has a notation of its own: "7" and true are mistakes, 7.0 is 7.
NUMBER = BeforeValidator(_number)
Side = Annotated[int, Field(ge=1, le=SIDE_MAX), NUMBER]

# For programs; the validators' own words are for people.
_STORABLE: dict[str, JsonValue] = {"pattern": r"^[^\x00]*$"}
VISIBLE: dict[str, JsonValue] = {"minLength": 1, "pattern": r"^[^\x00]*[^\x00\s][^\x00]*$"}
Storable = Annotated[str, Field(json_schema_extra=_STORABLE), AfterValidator(storable)]
Prompt = Annotated[
    str,
    Field(max_length=PROMPT_MAX_CHARS, json_schema_extra=_STORABLE),
    AfterValidator(storable),
]
Description = Annotated[
    str, Field(max_length=4000, json_schema_extra=_STORABLE), AfterValidator(storable)
]
Name = Annotated[
    str,
    Field(max_length=200, json_schema_extra=VISIBLE),
    AfterValidator(storable),
    AfterValidator(_not_blank),
]


def _show_nulls(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Say in the document that each field that may be left out may be null."""
    for field, found in schema.get("properties", {}).items():
        kinds = found.get("anyOf", [])
        if field in schema.get("required", ()) or {"type": "null"} in kinds:
            continue
        about = {key: found.pop(key) for key in ("title", "description", "default") if key in found}
        kind = dict(found)
        found.clear()
        found |= {"anyOf": [*(kinds or [kind]), {"type": "null"}], **about}


class In(BaseModel):
    """A body as the API takes it: no unknown field, and null as good as leaving a field out."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_show_nulls)

    # Fields in which null means something else.
    nulls_kept: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        fields = cls.model_fields
        return {
            name: value
            for name, value in body.items()
            if value is not None
            or name not in fields
            or fields[name].is_required()
            or name in cls.nulls_kept
        }


class Out(BaseModel):
    """What only goes out: a field with a default is always there, and the schema says so."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Problem(BaseModel):
    """Every error (RFC 9457), with a code that programs can rely on."""

    type: str
    title: str
    status: int
    detail: str
    error_code: str
    field: str | None = None
    details: dict[str, Any] | None = None


class Page(Out, Generic[Item]):
    """Some of a list; `next_cursor` is there where more follows."""

    items: list[Item]
    next_cursor: str | None = None
