"""The arrows between the rooms: studio → backend → contract ← worker, and none other.

Imports are read from the source (`ast`), so a lazy import inside a function counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import openapi

REPOSITORY = Path(__file__).resolve().parent.parent
CONTRACT = REPOSITORY / "contract" / "src"
WORKER = REPOSITORY / "worker" / "src"
BACKEND = REPOSITORY / "backend" / "app"

# room → packages that it must never import, at any depth.
FORBIDDEN = {
    CONTRACT: {"torch", "diffusers", "transformers", "fastapi", "modal", "sdxl_worker", "app"},
    WORKER: {"app", "modal", "sqlalchemy", "psycopg", "procrastinate", "obstore", "boto3"},
    BACKEND: {"torch", "diffusers", "transformers", "modal", "sdxl_worker", "moto"},
}


def imported(source: str) -> set[str]:
    """Top-level names of the packages that `source` imports absolutely."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def files() -> Iterator[tuple[Path, set[str]]]:
    for room, forbidden in FORBIDDEN.items():
        for path in sorted(room.rglob("*.py")):
            yield path, forbidden


@pytest.mark.parametrize(
    ("path", "forbidden"),
    [pytest.param(p, f, id=str(p.relative_to(REPOSITORY))) for p, f in files()],
)
def test_no_room_imports_what_it_must_not_know(path: Path, forbidden: set[str]) -> None:
    assert not imported(path.read_text()) & forbidden


def test_the_check_sees_a_forbidden_import_hidden_in_a_function() -> None:
    source = "def f():\n    from sdxl_worker.lora import LoraPatcher\n"

    assert imported(source) & FORBIDDEN[BACKEND] == {"sdxl_worker"}


def test_only_app_py_imports_modal() -> None:
    importers = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "worker").rglob("*.py")
        if "modal" in imported(path.read_text()) and "tests" not in path.parts
    }

    assert importers == {"worker/app.py"}


def test_the_project_reads_nothing_outside_itself() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", "*.ts", "*.tsx", "Makefile"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    strangers = [
        name
        for name in tracked
        if "../" + "shared" in (REPOSITORY / name).read_text(errors="replace")
    ]

    assert strangers == []


@pytest.mark.parametrize("module", ["sdxl_contract.request", "app.main", "sdxl_worker.api"])
def test_importing_needs_no_gpu_network_or_credentials(module: str) -> None:
    """A child process without environment, in which opening any socket is an error."""
    guard = (
        "import socket, sys\n"
        "def refuse(*_a, **_k): raise SystemExit('a socket was connected at import')\n"
        "socket.socket.connect = refuse\n"
        f"import {module}\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", guard],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_backend_imports_without_torch() -> None:
    code = "import sys, app.main; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_the_committed_api_document_is_what_the_app_says() -> None:
    # Here, among the quick ones: every change of a route or a shape must bring the file along.
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.document(), "run `make openapi`"
