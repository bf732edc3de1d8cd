"""`backend/.env.example.modal-sdxl-lora` says every setting of the backend, and nothing else.

The settings are read by importing every module of the backend, so a new class of them counts too.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from sdxl_worker.settings import Settings as WorkerSettings

REPOSITORY = Path(__file__).resolve().parent.parent
FILE = REPOSITORY / "backend" / ".env.example.modal-sdxl-lora"
WORKER_PART = "# --- The worker's half of the pair"
UNITS = {"_SECONDS": "second", "_BYTES": "byte", "_DAYS": "day", "_USD": "USD", "_MINUTE": "minute"}


@dataclass(frozen=True)
class Entry:
    """One `NAME=value` line and the comment lines right above it."""

    name: str
    value: str
    comment: str


def entries(text: str) -> list[Entry]:
    found: list[Entry] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            if not line.startswith("# ---"):
                comment.append(line.removeprefix("#").strip())
            continue
        if line:
            name, equals, value = line.partition("=")
            assert equals, f"no NAME=value line: {line}"
            found.append(Entry(name, value, " ".join(comment)))
        comment = []
    return found


@functools.cache
def settings_classes(package: str) -> set[type[BaseSettings]]:
    """Every settings class that a module of `package` defines."""
    root = importlib.import_module(package)
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(root.__path__, f"{package}.")
        if not found.name.endswith("__main__")
    ]
    return {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseSettings)
        and value.__module__.partition(".")[0] == package
    }


def variables(classes: set[type[BaseSettings]]) -> dict[str, FieldInfo]:
    return {
        f"{one.model_config.get('env_prefix', '')}{name}".upper(): field
        for one in classes
        for name, field in one.model_fields.items()
    }


def flat_types(annotation: object) -> Iterator[object]:
    """`annotation`, or each type of a union."""
    if get_args(annotation) and get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from flat_types(part)
    else:
        yield annotation


def must_say(name: str, field: FieldInfo) -> Iterator[str]:
    """What the comment of a setting has to name: its bounds, choices and unit."""
    for bound in field.metadata:
        for kind in ("ge", "gt", "le", "lt"):
            value = getattr(bound, kind, None)
            if value is not None:
                yield f"{value:g}" if float(value) < 1e6 else f"{value:.0f}"
    for kind_of in flat_types(field.annotation):
        if get_origin(kind_of) is Literal:
            yield from map(str, get_args(kind_of))
        elif isinstance(kind_of, type) and issubclass(kind_of, Enum):
            yield from (str(member.value) for member in kind_of)
        elif kind_of is SecretStr:
            yield "Secret."
    for suffix, unit in UNITS.items():
        if name.endswith(suffix):
            yield unit


TEXT = FILE.read_text()
BACKEND_TEXT, _, WORKER_TEXT = TEXT.partition(WORKER_PART)
BACKEND = entries(BACKEND_TEXT)
WORKER = entries(WORKER_TEXT.partition("\n")[2])
KNOWN = variables(settings_classes("app"))


def test_the_settings_were_found() -> None:
    assert {"LORA_PROVIDER", "MODAL_ENDPOINT_URL", "DATABASE_URL"} <= set(KNOWN)


def test_every_setting_is_in_the_file_and_nothing_else() -> None:
    names = [entry.name for entry in BACKEND]
    assert sorted(set(KNOWN) - set(names)) == [], "settings that the file leaves out"
    assert sorted(set(names) - set(KNOWN)) == [], "lines that are no setting"
    assert len(names) == len(set(names)), "a setting stands twice"


@pytest.mark.parametrize("entry", BACKEND, ids=lambda entry: entry.name)
def test_each_line_says_what_it_is_its_unit_and_what_it_may_be(entry: Entry) -> None:
    assert len(entry.comment) > 15
    if entry.name in KNOWN:
        for word in must_say(entry.name, KNOWN[entry.name]):
            assert word.lower() in entry.comment.lower(), f"{entry.name} does not say {word!r}"


def test_the_file_as_it_is_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sourced by a shell, as its head says."""
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    defaults = {one: one() for one in settings_classes("app")}
    sourced = subprocess.run(
        ["/bin/sh", "-c", f'set -a; . "{FILE}"; env -0'], capture_output=True, check=True
    ).stdout.decode()
    for line in sourced.split("\0"):
        name, _, value = line.partition("=")
        if name in KNOWN:
            monkeypatch.setenv(name, value)
    for one, default in defaults.items():
        assert one() == default


def test_the_file_holds_no_secret() -> None:
    for entry in BACKEND + WORKER:
        if "Secret." in entry.comment:
            assert entry.value == ""


def test_the_worker_s_lines_are_settings_of_the_worker() -> None:
    known = variables({WorkerSettings})
    assert WORKER
    for entry in WORKER:
        assert entry.name in known, entry.name
        assert len(entry.comment) > 15
        for word in must_say(entry.name, known[entry.name]):
            assert word.lower() in entry.comment.lower(), f"{entry.name} does not say {word!r}"
    assert {"BASE_MODEL", "WORKER_API_TOKEN", "HF_HOME", "HUGGINGFACE_HUB_TOKEN"} <= {
        entry.name for entry in WORKER
    }


def test_the_checks_see_what_is_missing() -> None:
    """The control, on lines that are wrong."""

    class Other(BaseSettings):
        """Settings with a unit, bounds, choices and a secret."""

        wait_seconds: float = 1
        kind: Literal["left", "right"] = "left"
        token: SecretStr | None = None

    known = variables({Other})
    assert list(known) == ["WAIT_SECONDS", "KIND", "TOKEN"]
    said = {name: set(must_say(name, field)) for name, field in known.items()}
    assert said == {"WAIT_SECONDS": {"second"}, "KIND": {"left", "right"}, "TOKEN": {"Secret."}}
    [entry] = entries("# One.\n\n# Two\n# three\nNAME=value\n")
    assert entry == Entry("NAME", "value", "Two three")
    bounds = set(must_say("PORT", KNOWN["PORT"]))
    assert bounds == {"1", "65535"}
    assert "65535" not in BACKEND[0].comment
