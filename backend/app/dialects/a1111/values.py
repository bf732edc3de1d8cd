"""Values as A1111's clients send them, and what is said of those that have no meaning here."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from sdxl_contract.errors import InvalidRequest

OFF = (None, False, 0, "", "None", "none")


def _whole(value: object) -> object:
    """8.0 and "8" for 8."""
    if isinstance(value, str):
        value = value.strip() or None
    return value


Whole = Annotated[int | None, BeforeValidator(_whole)]
Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_whole)]


def not_offered(field: str) -> InvalidRequest:
    """The error of what would change the picture and cannot be had."""
    return InvalidRequest(f"{field}: is not offered here: leave it off", details={"field": field})
