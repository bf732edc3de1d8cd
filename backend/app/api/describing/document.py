"""The OpenAPI document: what the routes say, with the shapes that no route names.

Duty: give errors and live events a name in the document, so that clients are generated whole.
Must not know: what a route does.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from app.core.errors import PROBLEM_JSON, ProblemCode
from app.schemas.common import Problem
from app.schemas.events import EVENTS
from sdxl_contract.errors import ErrorCode

_REF = "#/components/schemas/"
PROBLEM = {PROBLEM_JSON: {"schema": {"$ref": f"{_REF}{Problem.__name__}"}}}
_EVENTS_PATH = "/api/v1/content/{content_id}/events"


def install_document(app: FastAPI) -> None:
    """Let `app` describe itself whole; made once, at the first call."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _name_shapes(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _name_shapes(document: dict[str, Any]) -> None:
    models: dict[type[BaseModel], None] = dict.fromkeys([Problem, *EVENTS.values()])
    mode: JsonSchemaMode = "serialization"
    _, shapes = models_json_schema(
        [(model, mode) for model in models], ref_template=_REF + "{model}"
    )
    schemas = document["components"]["schemas"]
    for name, schema in shapes["$defs"].items():
        schemas.setdefault(name, schema)
    codes = sorted({code.value for code in (*ErrorCode, *ProblemCode)})
    schemas["ErrorCode"] = {
        "type": "string",
        "enum": codes,
        "description": "error_code of a problem, and code of a content that failed; more may come",
    }
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    item = document["paths"][_EVENTS_PATH]["get"]["responses"]["200"]["content"]
    item["text/event-stream"]["itemSchema"]["properties"] |= {
        "event": {"type": "string", "enum": list(EVENTS)},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "anyOf": [
                    {"$ref": _REF + model.__name__} for model in dict.fromkeys(EVENTS.values())
                ]
            },
        },
    }
