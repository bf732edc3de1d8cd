"""What the contract's models share: how a field is read.

Must not know: which requests there are.
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, model_validator

_SHA256 = re.compile(r"[0-9a-f]{64}")


def known_sha256(value: str | None) -> str | None:
    """A SHA-256 in lower case, or None.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return None
    lowered = value.lower()
    if not _SHA256.fullmatch(lowered):
        raise ValueError("must be a SHA-256 as 64 hexadecimal digits")
    return lowered


def no_bool(value: object) -> object:
    """Any value but `true` and `false`, which are numbers to Python.

    Raises:
        ValueError: it is one of these.
    """
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


class NullIsLeftOut(BaseModel):
    """Takes `null` for every field that may be left out, and reads it as just that."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {k: v for k, v in value.items() if v is not None or k not in optional}
