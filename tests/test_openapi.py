"""The API's document is what the app says, and the page's types are what the document says."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from app.core.errors import ProblemCode
from scripts import openapi
from sdxl_contract.errors import ErrorCode

STUDIO = Path(__file__).resolve().parents[1] / "studio"
GENERATOR = STUDIO / "node_modules" / ".bin" / "openapi-typescript"


def test_the_check_notices_an_old_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "openapi.json"
    old.write_text(openapi.document().replace("num_images", "pictures"), encoding="utf-8")
    monkeypatch.setattr(openapi, "FILE", old)
    monkeypatch.setattr("sys.argv", ["openapi", "--check"])

    assert openapi.main() == 1
    assert "make openapi" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["openapi"])
    assert openapi.main() == 0
    assert old.read_text(encoding="utf-8") == openapi.document()


def test_errors_and_live_events_have_a_shape_in_the_document() -> None:
    document = json.loads(openapi.FILE.read_text(encoding="utf-8"))
    shapes = document["components"]["schemas"]
    events = document["paths"]["/api/v1/content/{content_id}/events"]["get"]["responses"]["200"]
    item = events["content"]["text/event-stream"]["itemSchema"]["properties"]
    named = {one["$ref"].rpartition("/")[2] for one in item["data"]["contentSchema"]["anyOf"]}

    assert set(shapes["ErrorCode"]["enum"]) == {*ErrorCode, *ProblemCode}
    assert {"detail", "error_code", "field", "details"} <= shapes["Problem"]["properties"].keys()
    assert named <= shapes.keys()
    assert {"progress", "preview", "failed"} <= set(item["event"]["enum"])


def test_the_pages_types_are_generated_from_the_document(tmp_path: Path) -> None:
    if not GENERATOR.exists() or shutil.which("node") is None:
        pytest.skip("Node.js or studio/node_modules is missing: `cd studio && npm ci`")
    made = tmp_path / "openapi.ts"
    subprocess.run(
        ["node", GENERATOR, openapi.FILE, "-o", made, "--default-non-nullable=false"],
        check=True,
        capture_output=True,
        cwd=STUDIO,
    )

    kept = STUDIO / "src" / "server" / "openapi.ts"
    assert made.read_text() == kept.read_text(), "run `make openapi`"
