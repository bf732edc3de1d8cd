"""One OpenAPI document of all that a server answers: its own API, and every dialect's."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount

_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch"})


def whole_document(app: FastAPI) -> dict[str, Any]:
    """The app's document with the paths of its mounted applications below their prefixes."""
    whole: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    for mount in app.routes:
        if not isinstance(mount, Mount) or not isinstance(mount.app, FastAPI):
            continue
        name = mount.path.strip("/").replace("/", "_")
        # Components of one name are not the same thing in two documents.
        text = json.dumps(mount.app.openapi()).replace(
            '"#/components/schemas/', f'"#/components/schemas/{name}_'
        )
        part = json.loads(text)
        for path, operations in part["paths"].items():
            for method in _METHODS & set(operations):
                operation = operations[method]
                operation["operationId"] = f"{name}_{operation['operationId']}"
                operation["security"] = [
                    {f"{name}_{scheme}": scopes for scheme, scopes in way.items()}
                    for way in operation.get("security", [])
                ]
            whole["paths"][mount.path + path] = operations
        for kind, components in part.get("components", {}).items():
            into = whole["components"].setdefault(kind, {})
            for key, component in components.items():
                into[f"{name}_{key}"] = component
    return whole


def operations_of(document: dict[str, Any]) -> int:
    """How many operations a document has."""
    return sum(len(_METHODS & set(methods)) for methods in document["paths"].values())
