"""Locks what the Modal images install: every package with its version and its files' hashes.

    python -m scripts.lock_images        # part of `make lock`; needs uv and the registry

Versions are those of constraints.txt; hashes are the registry's (PyPI), of wheels alone. The
images are of one kind (CPython 3.11 on Linux, x86-64), for which PyPI's torch is the one with CUDA,
so its wheel's hash and those of its CUDA libraries are among them. `make deploy-check` compares the
result with constraints.txt and with what the sources import; it needs no registry.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sdxl_worker.deploying.image import LOCKS, PLATFORM, PYTHON, locked_packages

REPOSITORY = Path(__file__).resolve().parent.parent


def lock_command(lock: Path) -> list[str]:
    """How uv makes one lock of the names that it is given on its standard input."""
    return [
        *("uv", "pip", "compile", "-", "--quiet"),
        *("--constraints", "constraints.txt", "--generate-hashes", "--only-binary", ":all:"),
        *("--python-platform", PLATFORM, "--python-version", PYTHON),
        *("--no-header", "--no-annotate", "--output-file", str(lock)),
    ]


def main(repository: Path = REPOSITORY) -> int:
    """Write every lock; uv's exit status where it cannot."""
    for name, packages in locked_packages(repository).items():
        lock = LOCKS / name
        # What is there would be kept to, also where constraints.txt says otherwise now.
        (repository / lock).unlink(missing_ok=True)
        done = subprocess.run(
            lock_command(lock), input="\n".join(packages), text=True, cwd=repository, check=False
        )
        if done.returncode != 0:
            return done.returncode
        print(f"{lock}: {(repository / lock).read_text().count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
