"""Text that the database can hold, and a page of things."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, Field, JsonValue

Item = TypeVar("Item")


def _storable(text: str) -> str:
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


Storable = Annotated[str, AfterValidator(_storable)]
# For programs that read the schema; the validator's own words are for people.
VISIBLE: dict[str, JsonValue] = {"minLength": 1, "pattern": r"\S"}
Name = Annotated[
    str,
    Field(max_length=200, json_schema_extra=VISIBLE),
    AfterValidator(_storable),
    AfterValidator(_not_blank),
]


class Problem(BaseModel):
    """Every error (RFC 9457), with a code that programs can rely on."""

    type: str
    title: str
    status: int
    detail: str
    error_code: str
    field: str | None = None
    details: dict[str, Any] | None = None


class Page(BaseModel, Generic[Item]):
    """Some of a list; `next_cursor` is there where more follows."""

    items: list[Item]
    next_cursor: str | None = None
