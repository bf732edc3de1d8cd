"""What goes into the images that a deployment builds.

Must not know: Modal, settings.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

# The control's: no torch, so that it starts in a second or two.
CONTROL_PACKAGES = (
    "fastapi",
    "httpx2",
    "prometheus-client",
    "pydantic",
    "pydantic-settings",
    "structlog",
)


def image_packages(repository: Path) -> list[str]:
    """The names of what the worker and the contract depend on; constraints.txt pins each, and
    what they in turn need.

    Raises:
        ValueError: a dependency is not pinned there.
    """
    lines = (repository / "constraints.txt").read_text().splitlines()
    pinned = {_normalised(line.partition("==")[0]) for line in lines if "==" in line}
    wanted: set[str] = set()
    for member in ("contract", "worker"):
        project = tomllib.loads((repository / member / "pyproject.toml").read_text())["project"]
        wanted |= {_normalised(re.split(r"[^A-Za-z0-9._-]", d)[0]) for d in project["dependencies"]}
    wanted.discard("sdxl-contract")
    if unpinned := sorted(wanted - pinned):
        raise ValueError(f"constraints.txt pins no version of {', '.join(unpinned)}")
    return sorted(wanted)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
