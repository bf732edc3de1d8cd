"""Text that the database can hold, and a page of things."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, Field

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
Name = Annotated[str, Field(max_length=200), AfterValidator(_storable), AfterValidator(_not_blank)]


class Page(BaseModel, Generic[Item]):
    """Some of a list; `next_cursor` is there where more follows."""

    items: list[Item]
    next_cursor: str | None = None
