"""What goes into the images that a deployment builds, and where their locks lie.

Duty: which packages each image asks for, and what a lock holds: every package with its version and
the hashes of its files. `scripts/lock_images.py` writes locks; the images install by nothing else.
Must not know: Modal, settings.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

# Python and system of the containers: the only ones that the locks are for.
PYTHON = "3.11"
PLATFORM = "x86_64-manylinux_2_28"
LOCKS = Path("worker", "locks")  # from the repository's root
DRAWING_LOCK, CONTROL_LOCK = "drawing.txt", "control.txt"

# The control's: no torch, so that it starts in a second or two.
CONTROL_PACKAGES = (
    "fastapi",
    "httpx2",
    "prometheus-client",
    "pydantic",
    "pydantic-settings",
    "structlog",
)
_ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<hashes>(?: \\\n +\S+)*)$", re.M
)
_SHA256 = re.compile(r"--hash=sha256:([0-9a-f]{64})(?= |$)", re.M)


@dataclass(frozen=True)
class Locked:
    """One package of a lock."""

    version: str
    sha256s: frozenset[str]


def read_lock(text: str) -> dict[str, Locked]:
    """A lock's packages by normalised name."""
    return {
        normalised(found["name"]): Locked(
            found["version"], frozenset(_SHA256.findall(found["hashes"]))
        )
        for found in _ENTRY.finditer(text)
    }


def locked_packages(repository: Path) -> dict[str, list[str]]:
    """What each lock is asked to hold, before what that needs in turn."""
    return {DRAWING_LOCK: image_packages(repository), CONTROL_LOCK: list(CONTROL_PACKAGES)}


def image_packages(repository: Path) -> list[str]:
    """The names of what the worker and the contract depend on; constraints.txt pins each, and
    what they in turn need.

    Raises:
        ValueError: a dependency is not pinned there.
    """
    lines = (repository / "constraints.txt").read_text().splitlines()
    pinned = {normalised(line.partition("==")[0]) for line in lines if "==" in line}
    wanted: set[str] = set()
    for member in ("contract", "worker"):
        project = tomllib.loads((repository / member / "pyproject.toml").read_text())["project"]
        wanted |= {normalised(re.split(r"[^A-Za-z0-9._-]", d)[0]) for d in project["dependencies"]}
    wanted.discard("sdxl-contract")
    if unpinned := sorted(wanted - pinned):
        raise ValueError(f"constraints.txt pins no version of {', '.join(unpinned)}")
    return sorted(wanted)


def normalised(name: str) -> str:
    """A package's name as the registry compares names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
