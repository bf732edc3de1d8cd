"""An API's reference as one HTML page, made from its OpenAPI document.

Duty: every call with its parameters, bodies and answers, every shape, for reading in a browser that
loads nothing else: no script, no other server. Backend and worker serve it at `/docs`.
Must not know: which API it is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--ink:#1d1d22;--soft:#5d5d68;--line:#dcdce2;--page:#fff;--box:#f5f5f8;
--accent:#3b5bdb}
@media(prefers-color-scheme:dark){:root{--ink:#ececf1;--soft:#a2a2ae;--line:#36363f;--page:#17171b;
--box:#202027;--accent:#91a7ff}}
body{margin:0 auto;max-width:60rem;padding:2rem 1rem 6rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.7rem}h2{margin-top:3rem;border-bottom:1px solid var(--line)}
a{color:var(--accent)}code,pre{font:13px/1.5 ui-monospace,monospace}
details{margin:.6rem 0;border:1px solid var(--line);border-radius:8px;background:var(--box)}
summary{padding:.6rem .9rem;cursor:pointer;overflow-wrap:anywhere}
details>div{padding:0 .9rem .6rem}
.method{display:inline-block;min-width:4rem;font-weight:700;color:var(--accent)}
.soft{color:var(--soft)}table{width:100%;border-collapse:collapse;margin:.4rem 0 1rem}
th,td{padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top;overflow-wrap:anywhere}
pre{padding:.7rem;overflow-x:auto;border:1px solid var(--line);border-radius:6px;
background:var(--page)}
"""
_METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

# What the page may do: show itself, nowhere but on its own.
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def reference_page(document: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document."""
    title = escape(str(document["info"]["title"]))
    about = escape(str(document["info"].get("description") or ""))
    shapes = document.get("components", {}).get("schemas", {})
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: API</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{about}</p>"
        '<p class="soft">For programs: <a href="openapi.json">openapi.json</a> (OpenAPI '
        f"{escape(str(document['openapi']))}).</p>",
    ]
    tag = None
    for path, method, call in _calls(document):
        here = (call.get("tags") or ["other"])[0]
        if here != tag:
            tag = here
            parts.append(f"<h2>{escape(tag)}</h2>")
        parts.append(_call(path, method, call))
    parts.append("<h2>Shapes</h2>")
    parts += [_shape(name, schema) for name, schema in sorted(shapes.items())]
    parts.append("</body></html>")
    return "".join(parts)


def _calls(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Path, method and call, those of one tag together, in the document's order."""
    found = [
        (path, method, item[method])
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]
    tags = list(dict.fromkeys((call.get("tags") or ["other"])[0] for _, _, call in found))
    yield from sorted(found, key=lambda one: tags.index((one[2].get("tags") or ["other"])[0]))


def _call(path: str, method: str, call: Mapping[str, Any]) -> str:
    about = str(call.get("description") or call.get("summary") or "")
    first, _, rest = about.partition("\n")
    inside = f"<p>{escape(rest)}</p>" if rest.strip() else ""
    rows = [
        (
            f"<code>{escape(one['name'])}</code> <span class=soft>{escape(one['in'])}</span>",
            _kind(one.get("schema", {})),
            _notes(one.get("schema", {}), one.get("description"), one.get("required", False)),
        )
        for one in call.get("parameters", ())
    ]
    inside += _table("Parameters", rows)
    for media, content in call.get("requestBody", {}).get("content", {}).items():
        schema = content.get("schema", {})
        inside += f"<p>Body, <code>{escape(media)}</code>: {_kind(schema)}</p>"
    answers = []
    for status, answer in call.get("responses", {}).items():
        contents = answer.get("content", {}).items()
        kinds = ", ".join(
            f"<code>{escape(media)}</code> {_kind(content.get('schema', {}))}"
            for media, content in contents
        )
        answers.append((escape(status), kinds, escape(str(answer.get("description", "")))))
    inside += _table("Answers", answers)
    return (
        f'<details><summary><span class="method">{method.upper()}</span> '
        f'<code>{escape(path)}</code> <span class="soft">{escape(first)}</span></summary>'
        f"<div>{inside}</div></details>"
    )


def _shape(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"<code>{escape(field)}</code>",
            _kind(inner),
            _notes(inner, inner.get("description"), field in required),
        )
        for field, inner in schema.get("properties", {}).items()
    ]
    about = f"<p>{escape(str(schema.get('description', '')))}</p>"
    inside = _table("", rows) if rows else f"<p>{_kind(schema)}</p>"
    return (
        f'<details id="{_anchor(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<div>{about}{inside}</div></details>"
    )


def _kind(schema: Any, depth: int = 0) -> str:
    """A schema's type in a few words, shapes linked."""
    if not isinstance(schema, Mapping) or depth > 6:
        return "anything"
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f'<a href="#{_anchor(name)}">{escape(name)}</a>'
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(_kind(one, depth + 1) for one in schema[word])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}), depth + 1)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_kind(schema['additionalProperties'], depth + 1)}"
    form = f" ({escape(str(schema['format']))})" if "format" in schema else ""
    return f"{escape(str(kind))}{form}"


_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
    "minLength": "characters, at least",
    "maxLength": "characters, at most",
    "minItems": "items, at least",
    "maxItems": "items, at most",
}


def _notes(schema: Mapping[str, Any], about: object, required: bool) -> str:
    """Whether it is needed, its default, its bounds, and what it is."""
    inner = {**next(iter(schema.get("anyOf", ())), {}), **schema}
    notes = ["required"] if required else []
    if inner.get("default") not in (None, "", []):
        notes.append(f"default {inner['default']}")
    notes += [f"{words} {inner[bound]}" for bound, words in _BOUNDS.items() if bound in inner]
    if about:
        notes.append(str(about))
    return escape("; ".join(notes))


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{one}</td><td>{two}</td><td>{three}</td></tr>" for one, two, three in rows
    )
    return (f"<p class=soft>{title}</p>" if title else "") + f"<table>{lines}</table>"


def _anchor(name: str) -> str:
    return "shape-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)
