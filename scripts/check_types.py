"""mypy, strict, over every Python file that git knows or would add; says how many that are.

Two runs: `worker/` has an `app.py` and a `tests/` of its own, and the backend an `app`
package and `tests/` too. Where one of them lies on mypy's path first, the other has no name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHES = REPOSITORY / ".mypy_cache"


def python_files() -> list[str]:
    """What git tracks, and what it would track if it were added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return sorted({name for name in listed if (REPOSITORY / name).exists()})


def runs_of(files: list[str]) -> dict[str, list[str]]:
    """What each of the two runs checks, by the folder that comes first on its path."""
    own = [name for name in files if name.startswith("worker/") and "/src/" not in name]
    return {"backend": [name for name in files if name not in own], "worker": own}


def checked_by(output: str) -> int:
    """How many files mypy says that it checked."""
    found = re.search(r"(\d+) source files?\)?\s*$", output)
    return int(found[1]) if found else 0


def main() -> int:
    """Check; the exit status is mypy's, or 1 where a file was left out."""
    files = python_files()
    checked = failed = 0
    for first, names in runs_of(files).items():
        cache = CACHES / first
        if not cache.exists() and (CACHES / "backend").exists():
            # torch and the like are read once: a minute.
            shutil.copytree(CACHES / "backend", cache)
        cache.mkdir(parents=True, exist_ok=True)
        # By way of a file: a command line may be too short for all the names.
        (cache / "files").write_text("\n".join(names))
        run = subprocess.run(
            [sys.executable, "-m", "mypy", "--cache-dir", str(cache), f"@{cache / 'files'}"],
            cwd=REPOSITORY,
            env=os.environ | {"MYPYPATH": first},
            capture_output=True,
            text=True,
            check=False,
        )
        print(run.stdout + run.stderr, end="")
        checked += checked_by(run.stdout)
        failed = max(failed, run.returncode)
    print(f"mypy, strict: {checked} of {len(files)} Python files")
    if checked != len(files):
        print("Some Python file was not checked.", file=sys.stderr)
        return 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
