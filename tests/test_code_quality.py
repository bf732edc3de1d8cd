"""ruff and mypy are part of the tests: `make test` and CI cannot pass while they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff format"),
        pytest.param(["mypy"], id="mypy strict", marks=pytest.mark.slow),
        pytest.param(["mypy", "worker/app.py"], id="mypy worker/app.py", marks=pytest.mark.slow),
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
