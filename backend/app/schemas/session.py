"""Signing a page in and out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from app.schemas.common import In


class SignIn(In):
    """`POST /session`."""

    model_config = ConfigDict(extra="forbid")

    api_key: SecretStr = Field(min_length=1, max_length=200)


class SessionOut(BaseModel):
    """`GET /session`: who is asking."""

    signed_in: bool = Field(description="this call's key or cookie is valid")
    keys_required: bool = Field(description="false: no key was made yet, and none is needed")
    name: str | None = Field(description="the key's name; null where nobody is signed in")
