"""The arrows between the rooms: studio → backend → contract ← worker, and none other.

Imports are read from the source (`ast`), so a lazy import inside a function counts too.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from scripts import openapi

REPOSITORY = Path(__file__).resolve().parent.parent
CONTRACT = REPOSITORY / "contract" / "src"
WORKER = REPOSITORY / "worker" / "src"
BACKEND = REPOSITORY / "backend" / "app"
CLIENT = REPOSITORY / "client" / "src"

# room → packages that it must never import, at any depth.
FORBIDDEN = {
    CONTRACT: {"torch", "diffusers", "transformers", "fastapi", "modal", "sdxl_worker", "app"},
    WORKER: {"app", "modal", "sqlalchemy", "psycopg", "procrastinate", "obstore", "boto3"},
    BACKEND: {"torch", "diffusers", "transformers", "modal", "sdxl_worker", "moto"},
    CLIENT: {"torch", "fastapi", "sqlalchemy", "sdxl_contract", "sdxl_worker", "app"},
}


@functools.cache
def imports(source: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Every import in `source`, inside functions too; parsed once, however many tests ask."""
    nodes = ast.walk(ast.parse(source))
    return tuple(node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)))


def imported(source: str) -> set[str]:
    """Top-level names of the packages that `source` imports absolutely."""
    names: set[str] = set()
    for node in imports(source):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif node.level == 0 and node.module:
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


# --- inner layers: docs/architecture.md has the tables ----------------------------------------

PACKAGES = {"sdxl_worker": WORKER, "app": REPOSITORY / "backend"}
# room → rooms of this repository that it must not import; tests of a room may know more.
ROOMS = {
    "contract/src": {"sdxl_worker", "app", "testkit", "scripts", "deploy", "benchmarks"},
    "worker/src": {"app", "testkit", "scripts", "deploy", "benchmarks", "demo_model"},
    "backend/app": {"sdxl_worker", "testkit", "scripts", "deploy", "benchmarks", "demo_model"},
    "client/src": {"sdxl_contract", "sdxl_worker", "app", "testkit", "scripts", "deploy"},
    "scripts": {"benchmarks", "testkit", "deploy", "demo_model"},
    "deploy": {"benchmarks", "testkit", "app", "scripts", "demo_model"},
    "demo_model": {"sdxl_worker", "app", "benchmarks", "deploy", "testkit"},
}
LINES_MAX = 400
FILES_MAX = 14  # of a folder's own
# Folders that hold more, and why.
LARGER = {
    "backend/migrations/versions": "a chain, which only grows",
    "docs/decisions": "a log, which only grows",
    "docs/images": "the pictures of the docs",
    "backend/app/static/studio/assets": "written by the page's build",
}
# Files that are longer, and why.
LONGER = {
    "backend/app/core/settings.py": "one list: every setting of the backend",
    "contract/src/sdxl_contract/request.py": "one type: everything that may be asked",
    "worker/tests/test_service.py": "one running worker over HTTP: its cases share their helpers",
    "worker/tests/fetching/test_fetch.py": "one file server's misbehaviours, against one fetcher",
    "backend/app/services/contents/accepting.py": "one transaction, from the call to the queue",
    "backend/app/services/contents/attempt.py": "one try at a content, from claim to finish",
    "benchmarks/bench_cold_start.py": "one question, with both sides of the comparison",
    "worker/src/sdxl_worker/deploying/settings.py": "one list: every setting of a deployment",
}


def layers(document: str, package: str) -> list[set[str]]:
    """A package's table in architecture.md, line by line; names without the package."""
    table = re.search(rf"^\| \w+ \(`{package}`\).*?\n\n", document, re.MULTILINE | re.DOTALL)
    assert table is not None, f"architecture.md has no table of {package}"
    rows = [line.split("|")[1] for line in table[0].splitlines()[2:] if line]
    return [set(re.findall(r"`([\w.]+)`", row)) for row in rows]


def friendly(document: str) -> set[str]:
    """The packages of the lines whose members may import one another."""
    rows = re.findall(r"^\| (`[\w.]+` with [^|]*) \|", document, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


def modules_of(package: str, source: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((source / package).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(source: str, known: Collection[str]) -> set[str]:
    """Which of the known modules `source` imports, inside functions too."""
    names: set[str] = set()
    for node in imports(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
    return names & set(known)


def layer_of(module: str, rows: list[set[str]]) -> tuple[int, str]:
    """The line on which a module stands, and by which of its names: the longest."""
    inner = module.partition(".")[2]
    matches = [
        (name, number)
        for number, row in enumerate(rows)
        for name in row
        if inner == name or inner.startswith(f"{name}.")
    ]
    assert matches, f"{module} stands in no line of the table in docs/architecture.md"
    name, number = max(matches, key=lambda match: len(match[0]))
    return number, name


def arrows_up(
    graph: Mapping[str, Collection[str]], rows: list[set[str]], friends: Collection[str] = ()
) -> list[str]:
    """Imports of what stands above, or beside without being friends."""
    found = []
    for module, others in graph.items():
        here, own = layer_of(module, rows)
        for other in sorted(others):
            there, name = layer_of(other, rows)
            beside = here == there and own != name and not {own, name} <= set(friends)
            if there < here or beside:
                found.append(f"{module} → {other}")
    return found


def cycles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Every import cycle that a walk in depth meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            done.add(module)
            for other in sorted(graph.get(module, ())):
                walk(other, [*path, module])

    for module in graph:
        walk(module, [])
    return found


@functools.cache
def graph_of(package: str) -> dict[str, set[str]]:
    """Each module's imports of modules of the same package; the package itself left out."""
    known = modules_of(package, PACKAGES[package])
    return {
        module: imported_modules(path.read_text(), known) - {module, package}
        for module, path in known.items()
        if module != package
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_points_up(package: str) -> None:
    document = (REPOSITORY / "docs" / "architecture.md").read_text()
    rows = layers(document, package)
    assert arrows_up(graph_of(package), rows, friendly(document)) == []
    stand = {layer_of(module, rows)[1] for module in graph_of(package)}
    assert stand == set().union(*rows), "the table names what is not there"


def test_an_arrow_up_or_beside_is_seen() -> None:
    rows = [{"api"}, {"services", "services.worker"}, {"repositories", "schemas"}, {"core"}]
    wrong = {
        "app.core.db": {"app.repositories.costs"},
        "app.schemas.content": {"app.services.storage", "app.repositories.costs"},
        "app.services.worker.sse": {"app.services.loras", "app.core.db"},
    }
    assert arrows_up(wrong, rows) == [
        "app.core.db → app.repositories.costs",
        "app.schemas.content → app.repositories.costs",
        "app.schemas.content → app.services.storage",
        "app.services.worker.sse → app.services.loras",
    ]
    assert arrows_up(wrong, rows, {"services", "services.worker"})[3:] == []
    with pytest.raises(AssertionError, match="stands in no line"):
        arrows_up({"app.new_room.x": set()}, rows)


def test_a_route_asks_services_not_the_database() -> None:
    graph = graph_of("app")
    asking = {m for m, others in graph.items() if any("app.repositories" in o for o in others)}
    assert not [m for m in asking if m.startswith(("app.api", "app.dialects", "app.core"))]
    assert not [
        m for m, others in graph.items()
        if m.startswith("app.schemas") and any("app.services" in o for o in others)
    ]  # fmt: skip
    assert asking, "nobody asks the database: the names have changed"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_go_round_in_a_circle(package: str) -> None:
    assert cycles(graph_of(package)) == []


def test_a_circle_is_seen() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def tracked(*patterns: str) -> list[Path]:
    """What git tracks."""
    found = subprocess.run(
        ["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    return [REPOSITORY / name for name in found if (REPOSITORY / name).exists()]


def python_files() -> list[Path]:
    """Every Python file that git tracks."""
    return tracked("*.py")


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_another_that_it_does_not_need(room: str) -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix(): wrong
        for path in (REPOSITORY / room).rglob("*.py")
        if (wrong := imported(path.read_text()) & ROOMS[room])
    }
    assert found == {}


def test_no_test_imports_from_another_test() -> None:
    """What two of them need is in testkit/."""
    found = [
        f"{path.name} ← {node.module}"
        for path in python_files()
        for node in imports(path.read_text())
        if isinstance(node, ast.ImportFrom) and is_a_test(node.module or "")
    ]
    assert found == []
    assert is_a_test("tests.test_docs")
    assert not is_a_test("hypothesis.strategies")


def is_a_test(module: str) -> bool:
    """Whether a module's name is a test module's, or a conftest's."""
    last = module.rpartition(".")[2]
    return last.startswith("test_") or last == "conftest"


def test_nothing_edits_sys_path() -> None:
    """But for the client's own check, which people run by its path in backend/."""
    edit = re.compile(r"sys\.path\.(insert|append|extend)")
    found = [path.name for path in python_files() if edit.search(path.read_text())]
    assert found == ["test_modal_client_local.py"]


def test_files_and_folders_stay_small() -> None:
    folders = Counter(path.parent.relative_to(REPOSITORY).as_posix() for path in tracked())
    assert set(LARGER) <= folders.keys()
    for folder in LARGER:
        del folders[folder]
    long = {
        path.relative_to(REPOSITORY).as_posix()
        for path in python_files()
        if len(path.read_text().splitlines()) > LINES_MAX
    }
    assert long <= set(LONGER), "split it, or say in LONGER why it is one"
    assert {folder: n for folder, n in folders.items() if n > FILES_MAX} == {}
    assert max(folders.values()) > 10, "the count counts nothing"


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
    """A child process without environment, in which opening any socket is an error.

    The backend is, besides, imported without torch.
    """
    guard = (
        "import socket, sys\n"
        "def refuse(*_a, **_k): raise SystemExit('a socket was connected at import')\n"
        "socket.socket.connect = refuse\n"
        f"import {module}\n"
        "print('torch' in sys.modules)\n"
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
    assert result.stdout == f"{module == 'sdxl_worker.api'}\n"


def test_the_committed_api_document_is_what_the_app_says() -> None:
    # Here, among the quick ones: every change of a route or a shape must bring the file along.
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.document(), "run `make openapi`"
