"""Every dialect that the server speaks, and where it is mounted."""

from __future__ import annotations

from fastapi import FastAPI

from app.core.dialect import Dialect
from app.dialects.a1111.discovery import router as a1111_discovery
from app.dialects.a1111.errors import as_a1111
from app.dialects.a1111.routes import router as a1111_router
from app.dialects.openai.errors import as_openai
from app.dialects.openai.routes import router as openai_router
from app.dialects.subapp import dialect_app

PNG_INFO = "/sdapi/v1/png-info"
OPENAI = Dialect("/v1", key_headers=("api-key",), shape=as_openai)
A1111 = Dialect(
    "/sdapi",
    schemes=frozenset({"basic", "bearer"}),
    shape=as_a1111,
    large_bodies={PNG_INFO: 12 * 2**20},
    key_first=frozenset({PNG_INFO}),
)
DIALECTS = (OPENAI, A1111)


def mount_dialects(app: FastAPI) -> None:
    """Put each dialect's application below its prefix."""
    app.mount(OPENAI.prefix, dialect_app("OpenAI Images", OPENAI, app.state, openai_router))
    routers = (a1111_router, a1111_discovery)
    app.mount(A1111.prefix, dialect_app("A1111", A1111, app.state, *routers))
