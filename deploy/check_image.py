"""The images of the deployment: each holds what runs in it, pinned, and nothing that it should not.

Duty: the part of `make deploy-check` that reads sources and install commands.
Must not know: what Modal builds of them.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from deploy.modal_server_double import Said

REPOSITORY = Path(__file__).resolve().parent.parent


def imported_packages(files: Iterable[Path]) -> set[str]:
    """Top-level names of every package that the Python files import, at any depth."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def _needed_by(packages: list[str]) -> set[str]:
    """`packages` and all that they need here, by normalised name."""
    seen: set[str] = set()
    todo = list(packages)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return seen


def _commands(said: Said, words: str) -> list[str]:
    return [
        command
        for image in said.images.values()
        for command in image.image.dockerfile_commands
        if words in command
    ]


def _installed(said: Said) -> list[list[str]] | None:
    """The packages of each image's install command; None where one is not held to the pins."""
    commands = _commands(said, " pip install --python")
    if any("--constraint /constraints.txt" not in command for command in commands):
        return None
    return [re.findall(r"(?<= )[a-z][a-z0-9-]*(?= |$)", c.split("txt", 1)[-1]) for c in commands]


# Imports what the control does, where only the packages named as arguments can be found.
_CONTROL_IMPORTS = """
import sys
allowed = set(sys.argv[1:]) | {"sdxl_contract", "sdxl_worker"} | set(sys.stdlib_module_names)
class Others:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Others())
import sdxl_worker.deploying.control, sdxl_worker.deploying.settings, sdxl_worker.deploying.image
"""


def _control_problems(installed: list[str]) -> list[str]:
    """What the control imports and an image with only these packages would lack."""
    needed = _needed_by(installed)
    allowed = [
        package
        for package, owners in importlib.metadata.packages_distributions().items()
        if needed & {name.lower().replace("_", "-") for name in owners}
    ]
    done = subprocess.run(
        [sys.executable, "-c", _CONTROL_IMPORTS, *allowed],
        capture_output=True,
        text=True,
        check=False,
    )
    problems = [f"{name} is in the control's image" for name in needed & {"torch", "diffusers"}]
    if done.returncode != 0:
        problems.append(f"the control does not start: {done.stderr.strip().splitlines()[-1]}")
    return problems


def check_image(path: Path = REPOSITORY / "worker" / "app.py") -> list[str]:
    """Problems: packages that are imported but not in an image, not pinned, or not wanted."""
    from deploy.check import deployed

    said = deployed(path, {})
    images = _installed(said)
    if images is None:
        return ["an image is installed without constraints.txt"]
    uncompiled = len(images) - len(_commands(said, "RUN python -m compileall"))
    large, small = sorted(images, key=lambda names: "torch" not in names)
    problems = _control_problems(small)
    if uncompiled:
        problems.append(f"{uncompiled} images hold the project's code without compiling it")
    distributions = importlib.metadata.packages_distributions()
    needed = _needed_by(large)
    folders = [REPOSITORY / "worker" / "src", REPOSITORY / "contract" / "src"]
    sources = [path, *(file for folder in folders for file in folder.rglob("*.py"))]
    # Modal puts itself into every image.
    own = {"sdxl_contract", "sdxl_worker", "modal"}
    for package in sorted(imported_packages(sources) - own):
        owners = {name.lower().replace("_", "-") for name in distributions.get(package, [])}
        if not owners & needed:
            problems.append(f"{package} is imported and not installed in the image")
    constraints = (REPOSITORY / "constraints.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9.-]+)==", constraints, re.MULTILINE))
    everywhere = needed | _needed_by(small)
    problems += [f"{name} is needed in an image and not pinned" for name in everywhere - pinned]
    unwanted = {"torchvision", "modal", "pytest"}
    problems += [f"{name} is in an image" for name in everywhere & unwanted]
    return sorted(problems)
