"""API keys as the API makes and shows them; signing a page in and out."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from app.models import ApiKey
from app.schemas.common import In, Name


class KeyIn(In):
    """`POST /keys`."""

    name: Name = Field(description="what it is for")


class KeyOut(BaseModel):
    """A key without its secret part."""

    id: uuid.UUID
    name: str
    created_at: datetime
    current: bool = Field(description="this call was made with it")
    made_by: uuid.UUID | None = Field(
        description="the key that made it, within whose limits it is; null: the operator did"
    )

    @classmethod
    def of(cls, key: ApiKey, current: uuid.UUID | None) -> KeyOut:
        """As a call that was made with `current` sees it."""
        return cls(
            id=key.id,
            name=key.name,
            created_at=key.created_at,
            current=key.id == current,
            made_by=key.made_by,
        )


class KeyWithSecret(KeyOut):
    """A key that was just made."""

    key: str = Field(description="what callers send; shown once, and not kept")


class SignIn(In):
    """`POST /session`."""

    model_config = ConfigDict(extra="forbid")

    api_key: SecretStr = Field(min_length=1, max_length=200)


class SessionOut(BaseModel):
    """`GET /session`: who is asking."""

    signed_in: bool = Field(description="this call's key or cookie is valid")
    keys_required: bool = Field(description="false: no key was made yet, and none is needed")
    name: str | None = Field(description="the key's name; null where nobody is signed in")
