"""`make deploy-check`: what can be known of the Modal deployment without an account.

The real `modal` package deploys `worker/app.py` to a double of Modal's servers on loopback, twice:
as it is, and with every setting changed; each change must be found in what the servers were told.
Then the container's life is lived here with the small model: weights put on the volume and hashed,
the enter hooks, the ASGI app, one picture. Deprecation warnings are errors throughout.

Prints one line per check; exits with 1 when one fails.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement

from deploy.modal_server_double import Said, modal_server_double

REPOSITORY = Path(__file__).resolve().parent.parent
APP = REPOSITORY / "worker" / "app.py"
PLANTED = "planted-token-that-must-stay-here"

# Gone from Modal, or going: keywords of decorators, and names of the package.
OLD_KEYWORDS = {
    "allow_concurrent_inputs",
    "checkpointing_enabled",
    "concurrency_limit",
    "container_idle_timeout",
    "interactive",
    "keep_warm",
    "mounts",
    "show_progress",
}
OLD_NAMES = {"Mount", "NetworkFileSystem", "Stub", "build", "gpu", "web_endpoint"}
OLD_METHODS = {"copy_local_dir", "copy_local_file", "copy_mount", "lookup", "read_only"}


@dataclass(frozen=True)
class Probe:
    """How one setting is changed, and where among what Modal was told it must be found."""

    value: str  # of the environment variable
    told: Any
    see: Callable[[Said], Any]


def _first(said: Said) -> Any:
    return said.functions["Worker.*"].ranked_functions[0].function


def _filler(said: Said) -> Any:
    return said.functions["download_weights"].ranked_functions[0].function


def _volume(said: Said, function: Any, number: int) -> tuple[str, str]:
    mount = function.volume_mounts[number]
    return said.volumes[mount.volume_id], mount.mount_path


def _weights(part: int) -> Callable[[Said], list[str]]:
    """Name (0) or place (1) of the weights' volume, for the container that fills it and the one
    that reads it."""
    return lambda said: [_volume(said, of(said), 0)[part] for of in (_first, _filler)]


def image_environment(said: Said) -> dict[str, str]:
    """What the image sets in its environment."""
    lines = [line for image in said.images.values() for line in image.image.dockerfile_commands]
    pairs = [line[4:].partition("=") for line in lines if line.startswith("ENV ")]
    return {name: value.strip("'") for name, _, value in pairs}


def _variable(name: str) -> Callable[[Said], str | None]:
    return lambda said: image_environment(said).get(name)


def _scaling(name: str) -> Callable[[Said], int]:
    return lambda said: int(getattr(said.functions["Worker.*"].autoscaler_settings, name))


PROBES: dict[str, Probe] = {
    "BASE_MODEL": Probe("acme/other-xl", "acme/other-xl", _variable("BASE_MODEL")),
    "BASE_MODEL_REVISION": Probe("abc123", "abc123", _variable("BASE_MODEL_REVISION")),
    "DEPLOY_APP_NAME": Probe("other-app", "other-app", lambda s: s.published and s.published.name),
    "DEPLOY_GPU": Probe(
        "H100,A100-80GB",
        ["H100", "A100-80GB"],
        lambda s: [
            ranked.function.resources.gpu_config.gpu_type
            for ranked in s.functions["Worker.*"].ranked_functions
        ],
    ),
    "DEPLOY_CPU": Probe("4.5", 4500, lambda s: _first(s).resources.milli_cpu),
    "DEPLOY_MEMORY_MIB": Probe(
        "20000", [20000] * 2, lambda s: [of(s).resources.memory_mb for of in (_first, _filler)]
    ),
    "DEPLOY_MIN_CONTAINERS": Probe("2", 2, _scaling("min_containers")),
    "DEPLOY_MAX_CONTAINERS": Probe("7", 7, _scaling("max_containers")),
    "DEPLOY_BUFFER_CONTAINERS": Probe("3", 3, _scaling("buffer_containers")),
    "DEPLOY_SCALEDOWN_WINDOW_SECONDS": Probe("33", 33, _scaling("scaledown_window")),
    "DEPLOY_TARGET_INPUTS": Probe("2", 2, lambda s: _first(s).target_concurrent_inputs),
    "DEPLOY_MAX_INPUTS": Probe("6", 6, lambda s: _first(s).max_concurrent_inputs),
    "DEPLOY_TIMEOUT_SECONDS": Probe("400", 400, lambda s: _first(s).timeout_secs),
    "DEPLOY_STARTUP_TIMEOUT_SECONDS": Probe("1000", 1000, lambda s: _first(s).startup_timeout_secs),
    "DEPLOY_REGION": Probe(
        "us-east,eu-west",
        ["us-east", "eu-west"],
        lambda s: list(_first(s).scheduler_placement.regions),
    ),
    "DEPLOY_MEMORY_SNAPSHOT": Probe("false", False, lambda s: _first(s).checkpointing_enabled),
    "DEPLOY_FAILED_START_SECONDS": Probe("77", "77.0", _variable("DEPLOY_FAILED_START_SECONDS")),
    "DEPLOY_PROXY_AUTH": Probe(
        "false",
        False,
        lambda s: (
            s.functions["Worker.*"].method_definitions["web"].webhook_config.requires_proxy_auth
        ),
    ),
    "DEPLOY_WEIGHTS_VOLUME": Probe("other-w", ["other-w"] * 2, _weights(0)),
    "DEPLOY_WEIGHTS_MOUNT": Probe("/mnt/w", ["/mnt/w"] * 2, _weights(1)),
    "DEPLOY_LORA_VOLUME": Probe("other-l", "other-l", lambda s: _volume(s, _first(s), 1)[0]),
    "DEPLOY_LORA_MOUNT": Probe("/mnt/l", "/mnt/l", lambda s: _volume(s, _first(s), 1)[1]),
    "DEPLOY_SECRET_NAME": Probe(
        "other-secret",
        {"other-secret"},
        lambda s: {r.deployment_name for r in s.secrets.values()} - {""},
    ),
    # One of the worker's own settings, which a deployment passes on.
    "QUEUE_MAX": Probe("3", "3", _variable("QUEUE_MAX")),
}


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """The process's environment without any setting but `values`."""
    from sdxl_worker.settings import Settings

    before = dict(os.environ)
    for name in list(os.environ):
        if name in PROBES or name.startswith("DEPLOY_") or name.lower() in Settings.model_fields:
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def deprecations_are_errors() -> Iterator[None]:
    """Modal's own kind of deprecation warning, and Python's, raise."""
    from modal.exception import DeprecationError

    with warnings.catch_warnings():
        for category in (DeprecationError, DeprecationWarning):
            warnings.simplefilter("error", category)
        yield


def load_app(path: Path, values: Mapping[str, str]) -> ModuleType:
    """`path` imported anew under an environment of `values`."""
    spec = importlib.util.spec_from_file_location("app", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Modal looks its functions' module up by name.
    previous = sys.modules.get("app")
    sys.modules["app"] = module
    try:
        with environment(values), deprecations_are_errors():
            spec.loader.exec_module(module)
    finally:
        if previous is None:
            del sys.modules["app"]
        else:
            sys.modules["app"] = previous
    return module


def deployed(path: Path, values: Mapping[str, str]) -> Said:
    """What Modal's servers are told when `path` is deployed under `values`."""
    with modal_server_double() as (url, double):
        credentials = {"MODAL_TOKEN_ID": "ak-double", "MODAL_TOKEN_SECRET": "as-double"}
        with environment({**values, **credentials, "MODAL_SERVER_URL": url}):
            import modal

            module = load_app(path, {**values, **credentials, "MODAL_SERVER_URL": url})
            with (
                deprecations_are_errors(),
                modal.Client.from_credentials(*credentials.values()) as client,
            ):
                module.app.deploy(client=client)
    return double.said


def check_settings(path: Path = APP) -> list[str]:
    """Problems: settings whose change Modal does not hear of."""
    from sdxl_worker.deploying.settings import PREFIX, Deployment

    names = {
        name.upper() if name.startswith("base_model") else PREFIX + name.upper()
        for name in Deployment.model_fields
    }
    problems = [f"{name} has no probe in deploy_check.py" for name in sorted(names - set(PROBES))]
    plain = deployed(path, {})
    changed = deployed(path, {name: probe.value for name, probe in PROBES.items()})
    for name, probe in PROBES.items():
        before, after = probe.see(plain), probe.see(changed)
        if after != probe.told or before == after:
            problems.append(
                f"{name}={probe.value} does not reach Modal: it was told {after!r}, and {before!r} "
                "without it"
            )
    return problems


def check_secrets(path: Path = APP) -> list[str]:
    """Problems: a secret of this shell, or a file that is none of the app's sources, in what is
    sent; a container without the secret, or with more rights than it needs."""
    planted = {"WORKER_API_TOKEN": PLANTED, "HUGGINGFACE_HUB_TOKEN": PLANTED}
    said = deployed(path, planted)
    spellings = (PLANTED.encode(), base64.b64encode(PLANTED.encode()).rstrip(b"="))
    problems = [
        f"a secret of the environment is sent in {type(message).__name__}"
        for message in said.messages
        if any(spelling in message.SerializeToString() for spelling in spellings)
    ]
    sent = {file.filename for mount in said.mounts.values() for file in mount.files}
    own = re.compile(r"/root/(app\.py|sdxl_(contract|worker)/.*\.py)|/constraints\.txt")
    problems += [f"{name} is sent to Modal" for name in sorted(sent) if not own.fullmatch(name)]
    named = {key for key, request in said.secrets.items() if request.deployment_name}
    for name, function in said.functions.items():
        if not named & set(function.ranked_functions[0].function.secret_ids):
            problems.append(f"{name} does not get the secret")
    if not _first(said).volume_mounts[0].read_only:
        problems.append("a container that draws could write the weights' volume")
    for package in ("sdxl_contract", "sdxl_worker"):
        source = REPOSITORY / package.removeprefix("sdxl_") / "src" / package
        problems += [
            f"{file.relative_to(REPOSITORY)} is not sent to Modal"
            for file in sorted(source.rglob("*.py"))
            if f"/root/{package}/{file.relative_to(source).as_posix()}" not in sent
        ]
    required = {key for request in said.secrets.values() for key in request.required_keys}
    if "WORKER_API_TOKEN" not in required:
        problems.append("the secret need not hold WORKER_API_TOKEN")
    return problems


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


def check_image(path: Path = APP) -> list[str]:
    """Problems: packages that are imported but not in the image, not pinned, or not wanted."""
    commands = [
        command
        for image in deployed(path, {}).images.values()
        for command in image.image.dockerfile_commands
        if " pip install --python" in command
    ]
    installed = re.findall(r"(?<= )[a-z][a-z0-9-]*(?= |$)", commands[0].split("txt", 1)[-1])
    problems = []
    if "--constraint /constraints.txt" not in commands[0]:
        problems.append("the image is installed without constraints.txt")
    distributions = importlib.metadata.packages_distributions()
    needed = _needed_by(installed)
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
    problems += [f"{name} is needed in the image and not pinned" for name in needed - pinned]
    problems += [f"{name} is in the image" for name in needed & {"torchvision", "modal", "pytest"}]
    return sorted(problems)


def check_names(source: str) -> list[str]:
    """Problems: names of Modal that are deprecated or gone."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in OLD_KEYWORDS:
            problems.append(f"line {node.value.lineno}: {node.arg} is gone from modal")
        elif isinstance(node, ast.Attribute):
            of_modal = isinstance(node.value, ast.Name) and node.value.id == "modal"
            if node.attr in (OLD_NAMES if of_modal else OLD_METHODS):
                problems.append(f"line {node.lineno}: {node.attr} is gone from modal")
        elif isinstance(node, ast.ClassDef):
            problems += [
                f"line {item.lineno}: a modal class has no __init__"
                for item in node.body
                if isinstance(item, ast.FunctionDef) and item.name == "__init__"
            ]
    return problems


def main() -> int:
    """Run every check; 1 when one finds a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", type=Path, default=APP, help="another app.py, for the controls")
    parser.add_argument("--no-picture", action="store_true", help="definitions only")
    options = parser.parse_args()
    checks: list[tuple[str, Callable[[], list[str]]]] = [
        ("no deprecated name of modal", lambda: check_names(options.app.read_text())),
        (f"all {len(PROBES)} settings reach Modal", lambda: check_settings(options.app)),
        (
            "no secret is sent, all sources are, rights are least",
            lambda: check_secrets(options.app),
        ),
        ("the image holds every import, pinned", lambda: check_image(options.app)),
    ]
    if not options.no_picture:
        from deploy.check_local import check_container, check_filling

        checks.append(
            ("filling the volume follows its settings", lambda: check_filling(options.app))
        )
        checks.append(("hooks, ASGI app and a picture", lambda: check_container(options.app)))
    failed = False
    for title, check in checks:
        problems = check()
        failed |= bool(problems)
        print(f"{'FAILED' if problems else 'ok    '} {title}", flush=True)
        for problem in problems:
            print(f"       {problem}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
