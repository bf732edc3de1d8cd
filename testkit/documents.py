"""What tests of the documents read them with: Markdown, all files, the settings' names."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from app.core.settings import Settings as BackendSettings
from sdxl_worker.deploying.settings import Deployment
from sdxl_worker.settings import Settings as WorkerSettings

REPOSITORY = Path(__file__).resolve().parent.parent
GUIDE = "docs/MODAL_SDXL_LORA_INTEGRATION.md"
TRANSLATIONS = [("README.md", "README.es.md"), (GUIDE, GUIDE.replace("docs/", "docs/es/"))]
SETTINGS: tuple[type[BaseSettings], ...] = (BackendSettings, WorkerSettings, Deployment)


@cache
def files() -> tuple[str, ...]:
    """Every file of the repository that git does not ignore, by relative path."""
    found = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return tuple(name for name in found if (REPOSITORY / name).is_file())


_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each fenced block."""
    return [(match[1], match[2]) for match in _FENCE.finditer(text)]


def prose(text: str) -> str:
    return _FENCE.sub("", text)


def inline_codes(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def headings(text: str) -> list[tuple[int, str]]:
    """(level, title) in order."""
    return [
        (len(marks), title.strip())
        for marks, title in re.findall(r"^(#{1,6}) (.+)$", prose(text), re.MULTILINE)
    ]


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    seen: dict[str, int] = {}
    names = set()
    for _, title in headings(text):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of each table row."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def environment_names(settings: type[BaseSettings]) -> dict[str, str]:
    """Environment variable → field of a settings class."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    names = {}
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        names[str(alias.choices[0]) if alias else (prefix + name).upper()] = name  # type: ignore[union-attr]
    return names


def codes_and_fields() -> tuple[list[str], list[str]]:
    """Every error code, and the name of every field that a call may have."""
    document = json.loads((REPOSITORY / "docs" / "openapi.json").read_text(encoding="utf-8"))
    shapes = document["components"]["schemas"]
    fields = set()
    for methods in document["paths"].values():
        for operation in methods.values():
            fields |= {
                one["name"] for one in operation.get("parameters", []) if one["in"] != "path"
            }
            for media in operation.get("requestBody", {}).get("content", {}).values():
                fields |= _names(media["schema"], shapes)
    return sorted(shapes["ErrorCode"]["enum"]), sorted(fields)


def _names(schema: Any, shapes: dict[str, Any]) -> set[str]:
    """The properties that a schema, and all that it refers to, may have."""
    if isinstance(schema, list):
        return set().union(*(_names(one, shapes) for one in schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema.get("properties", ()))
    if "$ref" in schema:
        found |= _names(shapes[schema["$ref"].rpartition("/")[2]], shapes)
    parts = [schema.get(key) for key in ("items", "anyOf", "allOf", "oneOf")]
    return found | _names([*parts, *schema.get("properties", {}).values()], shapes)
