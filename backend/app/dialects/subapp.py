"""A dialect as an application of its own, mounted below its prefix.

Its own document (`{prefix}/openapi.json`), its own errors' shape; the services are the server's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.routing import BaseRoute

from app.core.dialect import Dialect
from app.core.errors import install_error_handlers


def dialect_app(title: str, dialect: Dialect, state: State, routes: Iterable[BaseRoute]) -> FastAPI:
    """The application to mount at `dialect.prefix`."""
    app = FastAPI(
        title=title, version="0.1.0", docs_url=None, redoc_url=None, strict_content_type=False
    )
    app.state = state
    install_error_handlers(app, dialect.shape)
    app.router.routes.extend(routes)
    return app


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """For `openapi_extra`: a body that the route reads itself, whatever its Content-Type."""
    schema = model.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}
