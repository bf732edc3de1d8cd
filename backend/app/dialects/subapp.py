"""A dialect as an application of its own, mounted below its prefix.

Its own document (`{prefix}/openapi.json`), its own errors' shape; the services are the server's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.routing import BaseRoute

from app.core.dialect import Dialect
from app.core.errors import install_error_handlers

# How a key may be sent, by the scheme's name; OpenAPI knows two of them by themselves.
_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic"},
}
_METHODS = frozenset({"get", "put", "post", "delete", "patch"})


def dialect_app(
    title: str,
    dialect: Dialect,
    state: State,
    routes: Iterable[BaseRoute],
    errors: Mapping[str, Any],
) -> FastAPI:
    """The application to mount at `dialect.prefix`; `errors`: its errors' JSON schema by media
    type."""
    app = FastAPI(
        title=title, version="0.1.0", docs_url=None, redoc_url=None, strict_content_type=False
    )
    app.state = state
    install_error_handlers(app, dialect.shape)
    app.router.routes.extend(routes)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _describe(document, dialect, errors)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _describe(document: dict[str, Any], dialect: Dialect, errors: Mapping[str, Any]) -> None:
    """Say how a key is sent, and how errors look: no route says so of itself."""
    schemes = {
        scheme: _SCHEMES.get(
            scheme,
            {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": f"{scheme.capitalize()} <api key>",
            },
        )
        for scheme in sorted(dialect.schemes)
    }
    schemes |= {
        name: {"type": "apiKey", "in": "header", "name": name} for name in dialect.key_headers
    }
    document.setdefault("components", {})["securitySchemes"] = schemes
    # Bodies that routes read themselves are those of `json_body`, shared by all documents.
    document["paths"] = copy.deepcopy(document["paths"])
    shapes = document["components"].setdefault("schemas", {})
    _point_at(document["paths"], shapes)
    content = {kind: {"schema": schema} for kind, schema in errors.items()}
    for operations in document["paths"].values():
        for method in _METHODS & set(operations):
            operation = operations[method]
            operation["security"] = [{name: []} for name in schemes]
            answers = operation["responses"]
            answers.pop("422", None)  # the framework's own shape, which no dialect answers
            for status in ("4XX", "5XX"):
                answers.setdefault(status, {"description": "Error", "content": content})
    for unused in ("HTTPValidationError", "ValidationError"):
        shapes.pop(unused, None)


def _point_at(node: Any, shapes: dict[str, Any]) -> None:
    """Put the parts that a body's own schema defines among the document's, where `$ref` finds them:
    below a body nothing is looked for."""
    if isinstance(node, list):
        for item in node:
            _point_at(item, shapes)
    if not isinstance(node, dict):
        return
    for name, part in node.pop("$defs", {}).items():
        _point_at(part, shapes)
        if shapes.setdefault(name, part) != part:
            raise ValueError(f"two shapes of one document are called {name}")
    reference = node.get("$ref")
    if isinstance(reference, str):
        node["$ref"] = reference.replace("#/$defs/", "#/components/schemas/")
    for value in node.values():
        _point_at(value, shapes)


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """For `openapi_extra`: a body that the route reads itself, whatever its Content-Type."""
    schema = model.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}
