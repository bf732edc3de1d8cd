"""Every dialect that the server speaks, and where it is mounted."""

from __future__ import annotations

from fastapi import FastAPI

from app.core.dialect import Dialect
from app.dialects.openai.errors import as_openai
from app.dialects.openai.routes import router as openai_router
from app.dialects.subapp import dialect_app

OPENAI = Dialect("/v1", key_headers=("api-key",), shape=as_openai)
DIALECTS = (OPENAI,)


def mount_dialects(app: FastAPI) -> None:
    """Put each dialect's application below its prefix."""
    app.mount(OPENAI.prefix, dialect_app("OpenAI Images", OPENAI, app.state, openai_router))
