"""The reference is made of the document alone, and a browser loads nothing else for it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

from sdxl_contract.reference_page import HEADERS, reference_page

DOCUMENT = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "openapi.json").read_text(encoding="utf-8")
)


def test_every_call_and_every_shape_stands_on_the_page() -> None:
    page = reference_page(DOCUMENT)
    for path, item in DOCUMENT["paths"].items():
        assert f"<code>{path}</code>" in page
        assert len(re.findall(rf"<code>{re.escape(path)}</code>", page)) == len(item)
    for name in DOCUMENT["components"]["schemas"]:
        assert f"<summary><code>{name}</code></summary>" in page
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))


def test_the_page_loads_nothing_and_its_style_is_the_one_that_is_allowed() -> None:
    page = reference_page(DOCUMENT)
    assert not re.search(r"<(script|link|img|iframe|form)\b|\bsrc=|@import|url\(", page)
    assert re.findall(r'href="(?!#)([^"]+)"', page) == ["openapi.json"]
    [style] = re.findall(r"<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in HEADERS["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in HEADERS["Content-Security-Policy"]
    assert " style=" not in page


def test_what_the_document_says_is_never_taken_for_markup() -> None:
    evil = "<script>alert(1)</script>\"'"
    page = reference_page(
        {
            "openapi": evil,
            "info": {"title": evil, "description": evil},
            "paths": {
                evil: {
                    "get": {
                        "tags": [evil],
                        "description": f"{evil}\n{evil}",
                        "parameters": [
                            {"name": evil, "in": evil, "description": evil,
                             "schema": {"type": evil, "format": evil, "default": evil}}
                        ],
                        "requestBody": {"content": {evil: {"schema": {"$ref": evil}}}},
                        "responses": {evil: {"description": evil, "content": {evil: {}}}},
                    }
                }
            },
            "components": {
                "schemas": {
                    evil: {"description": evil, "properties": {evil: {"enum": [evil]}}},
                    "b": {"const": evil},
                }
            },
        }
    )  # fmt: skip
    assert "<script" not in page
    assert "\\\"'" not in page
