"""The images of the deployment: each holds what runs in it, pinned, and nothing that it should not.

Duty: the part of `make deploy-check` that reads sources and install commands.
Must not know: what Modal builds of them.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement

from deploy.modal_server_double import Said
from sdxl_worker.deploying.image import (
    CONTROL_LOCK,
    DRAWING_LOCK,
    PYTHON,
    Locked,
    locked_packages,
    read_lock,
)

REPOSITORY = Path(__file__).resolve().parent.parent
# From the registry that uv knows by itself, by one lock, and nothing beside it.
_INSTALL = re.compile(
    r"RUN /\.uv/uv pip install --python \$\(command -v python\) --compile-bytecode "
    r"--require-hashes --no-build --requirements /\.uv/0/(\S+)"
)


def imported_packages(files: Iterable[Path]) -> set[str]:
    """Top-level names of every package that the Python files import, at any depth."""
    names = {name for file in files for name in _imported(file.read_text())}
    return names - set(sys.stdlib_module_names)


@functools.cache
def _imported(source: str) -> frozenset[str]:
    """Top-level names of what `source` imports; read once, however many images are checked."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return frozenset(names)


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Which distributions bring a top-level name; a second's look through all that is installed."""
    return importlib.metadata.packages_distributions()


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


def _installed(said: Said) -> dict[str, dict[str, Locked]] | None:
    """What each image's install command takes, by its lock's name; None where one takes anything
    else, or is not held to the hashes."""
    found = {}
    for image in said.images.values():
        for command in image.image.dockerfile_commands:
            if " pip install --python" not in command:
                continue
            taken = _INSTALL.fullmatch(command)
            if taken is None:
                return None
            files = {one.filename: one.data.decode() for one in image.image.context_files}
            found[taken[1]] = read_lock(files[f"/.0_{taken[1]}"])
    return found


def _pins(repository: Path) -> dict[str, str]:
    """constraints.txt, as it is for the containers' Python and system: version by name."""
    environment = {
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.9",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
    }
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if "==" in line]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def lock_problems(name: str, lock: dict[str, Locked], repository: Path) -> list[str]:
    """What is wrong with a lock: old, incomplete, or without a hash."""
    pins = _pins(repository)
    packages = locked_packages(repository)[name]
    needed = _needed_by(packages)
    if "torch" in needed:
        # What torch needs with CUDA, which the one that is installed here may do without.
        needed |= {pin for pin in pins if pin.startswith(("nvidia-", "cuda-"))} | {"triton"}
    problems = [
        f"{package} is needed and not in {name}: run make lock" for package in needed - set(lock)
    ]
    problems += [f"{package} is in {name} and not needed" for package in set(lock) - needed]
    for package, held in lock.items():
        if held.version != pins.get(package):
            said = f"{held.version}, and {pins.get(package)} in constraints.txt"
            problems.append(f"{package} is {said} in {name}: run make lock")
        if not held.sha256s:
            problems.append(f"{package} has no hash in {name}")
    return problems


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


def _control_problems(needed: set[str]) -> list[str]:
    """What the control imports and an image with only these packages would lack."""
    allowed = [
        package
        for package, owners in _owners().items()
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
    if images is None or set(images) != {DRAWING_LOCK, CONTROL_LOCK}:
        return ["an image is installed by something else than its lock's hashes"]
    uncompiled = len(images) - len(_commands(said, "RUN python -m compileall"))
    repository = path.parent.parent
    problems = [one for name in images for one in lock_problems(name, images[name], repository)]
    problems += _control_problems(set(images[CONTROL_LOCK]))
    if uncompiled:
        problems.append(f"{uncompiled} images hold the project's code without compiling it")
    if not any("gcc" in command.split() for command in _commands(said, "RUN apt-get install")):
        # Modal's Debian has one; Triton builds with it what DRAW_SPEED=compiled and fp8 launch.
        problems.append("no image holds a C compiler: compiled and fp8 would draw exactly")
    needed = set(images[DRAWING_LOCK])
    folders = [REPOSITORY / "worker" / "src", REPOSITORY / "contract" / "src"]
    sources = [path, *(file for folder in folders for file in folder.rglob("*.py"))]
    # Modal puts itself into every image.
    own = {"sdxl_contract", "sdxl_worker", "modal"}
    for package in sorted(imported_packages(sources) - own):
        owners = {name.lower().replace("_", "-") for name in _owners().get(package, [])}
        if not owners & needed:
            problems.append(f"{package} is imported and not installed in the image")
    everywhere = needed | set(images[CONTROL_LOCK])
    unwanted = {"torchvision", "modal", "pytest"}
    problems += [f"{name} is in an image" for name in everywhere & unwanted]
    return sorted(problems)
