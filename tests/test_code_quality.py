"""ruff and mypy are part of the tests: `make test` and CI cannot pass while they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import check_types

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff format"),
        pytest.param(["scripts.check_types"], id="mypy strict", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_the_code_is_clean(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_python_file_is_in_one_of_the_two_runs_of_mypy() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    checked = [
        name for names in check_types.runs_of(check_types.python_files()).values() for name in names
    ]

    assert len(checked) == len(set(checked))
    assert {name for name in tracked if (REPOSITORY / name).exists()} <= set(checked)


def test_the_count_of_mypy_is_read() -> None:
    assert check_types.checked_by("Success: no issues found in 284 source files\n") == 284
    assert check_types.checked_by("Found 3 errors in 2 files (checked 12 source files)\n") == 12
    assert check_types.checked_by("app.py: error: something prevented further checking\n") == 0


def test_every_direct_requirement_is_pinned_in_the_lock() -> None:
    def name(line: str) -> str:
        return line.split("==")[0].split("[")[0].split(";")[0].strip().lower().replace("_", "-")

    wanted = {
        name(line)
        for line in (REPOSITORY / "requirements.in").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    locked = {
        name(line)
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }

    assert wanted <= locked
