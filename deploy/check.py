"""`make deploy-check`: what can be known of the Modal deployment without an account.

The real `modal` package deploys `worker/app.py` to a double of Modal's servers on loopback, twice:
as it is, and with every setting changed; each change must be found in what the servers were told.
Then the container's life is lived here with the small model: weights put on the volume and hashed,
the enter hooks, the ASGI app, one picture. Deprecation warnings are errors throughout.

Prints one line per check, with the numbers of the faults that it would find again
(`deploy/check_faults.py`); exits with 1 when one fails.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.check_image import check_image
from deploy.check_typed import check_typed
from deploy.modal_server_double import ModalServerDouble, Said, modal_server_double

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


def _drawing(said: Said) -> Any:
    """The containers that draw, whichever way requests come to them."""
    return said.functions.get("Worker.*") or said.functions["Server"]


def _first(said: Said) -> Any:
    return _drawing(said).ranked_functions[0].function


def _control(said: Said) -> Any:
    return said.functions["control"].ranked_functions[0].function


def _private(said: Said) -> list[bool]:
    """Whether Modal asks for its tokens before a container that draws, and before the control."""
    drawing = _drawing(said)
    if "web" in drawing.method_definitions:
        first = drawing.method_definitions["web"].webhook_config.requires_proxy_auth
    else:
        first = not _first(said).http_config.unauthenticated
    return [first, _control(said).webhook_config.requires_proxy_auth]


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
    def see(said: Said) -> int:
        settings = _drawing(said).autoscaler_settings
        return int(
            getattr(settings if settings.ByteSize() else _first(said).autoscaler_settings, name)
        )

    return see


def _target(said: Said) -> float:
    """Requests per container that Modal scales for; a server may be told a fraction."""
    whole = _first(said)
    return float(
        whole.target_concurrent_inputs or whole.autoscaler_settings.target_concurrency_float
    )


PROBES: dict[str, Probe] = {
    "BASE_MODEL": Probe("acme/other-xl", "acme/other-xl", _variable("BASE_MODEL")),
    "BASE_MODEL_REVISION": Probe("abc123", "abc123", _variable("BASE_MODEL_REVISION")),
    "DEPLOY_APP_NAME": Probe("other-app", "other-app", lambda s: s.published and s.published.name),
    "DEPLOY_GPU": Probe(
        "H100,A100-80GB",
        ["H100", "A100-80GB"],
        lambda s: [
            ranked.function.resources.gpu_config.gpu_type for ranked in _drawing(s).ranked_functions
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
    "DEPLOY_TARGET_INPUTS": Probe("2", 2, _target),
    "DEPLOY_MAX_INPUTS": Probe("6", 6, lambda s: _first(s).max_concurrent_inputs),
    "DEPLOY_TIMEOUT_SECONDS": Probe("400", 400, lambda s: _first(s).timeout_secs),
    "DEPLOY_STARTUP_TIMEOUT_SECONDS": Probe("1000", 1000, lambda s: _first(s).startup_timeout_secs),
    "DEPLOY_REGION": Probe(
        "us-east,eu-west",
        [["us-east", "eu-west"]] * 2,
        lambda s: [list(of(s).scheduler_placement.regions) for of in (_first, _control)],
    ),
    "DEPLOY_ROUTING": Probe(
        "affinity", True, lambda s: "Server" in s.functions and "Worker.*" not in s.functions
    ),
    "DEPLOY_ROUTING_REGION": Probe(
        "eu-west", ["eu-west"], lambda s: list(_first(s).http_config.proxy_regions)
    ),
    "DEPLOY_SNAPSHOT": Probe("off", False, lambda s: _first(s).checkpointing_enabled),
    "DEPLOY_FAILED_START_SECONDS": Probe("77", "77.0", _variable("DEPLOY_FAILED_START_SECONDS")),
    "DEPLOY_PROXY_AUTH": Probe("false", [False, False], _private),
    "DEPLOY_WEIGHTS_VOLUME": Probe("other-w", ["other-w"] * 2, _weights(0)),
    "DEPLOY_WEIGHTS_MOUNT": Probe("/mnt/w", ["/mnt/w"] * 2, _weights(1)),
    "DEPLOY_LORA_VOLUME": Probe("other-l", "other-l", lambda s: _volume(s, _first(s), 1)[0]),
    "DEPLOY_LORA_MOUNT": Probe("/mnt/l", "/mnt/l", lambda s: _volume(s, _first(s), 1)[1]),
    "DEPLOY_CODE_VOLUME": Probe("other-c", "other-c", lambda s: _volume(s, _first(s), 2)[0]),
    "DEPLOY_CODE_MOUNT": Probe("/mnt/c", "/mnt/c", lambda s: _volume(s, _first(s), 2)[1]),
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


# Settings that one way of routing has no use for.
ONLY = {"queue": {"DEPLOY_TIMEOUT_SECONDS"}, "affinity": {"DEPLOY_ROUTING_REGION"}}


def check_settings(path: Path = APP, routing: str = "queue") -> list[str]:
    """Problems: settings whose change Modal does not hear of, with that way of routing."""
    from sdxl_worker.deploying.settings import PREFIX, Deployment

    names = {
        name.upper() if name.startswith("base_model") else PREFIX + name.upper()
        for name in Deployment.model_fields
    }
    problems = [f"{name} has no probe in deploy/check.py" for name in sorted(names - set(PROBES))]
    others = set().union(*(only for way, only in ONLY.items() if way != routing))
    probes = {n: p for n, p in PROBES.items() if n not in others | {"DEPLOY_ROUTING"}}
    way = {"DEPLOY_ROUTING": routing}
    plain = deployed(path, way)
    changed = deployed(path, way | {name: probe.value for name, probe in probes.items()})
    if routing != "queue":
        probes["DEPLOY_ROUTING"] = PROBES["DEPLOY_ROUTING"]
    for name, probe in probes.items():
        before = probe.see(plain) if name != "DEPLOY_ROUTING" else probe.see(deployed(path, {}))
        after = probe.see(changed)
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
    own = re.compile(r"/root/(app\.py|sdxl_(contract|worker)/.*\.py)")
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


# Title, the faults (`deploy/check_faults.py`) whose cases it holds, and what it does.
Check = tuple[str, str, Callable[[], list[str]]]


def checks(app: Path, servers: tuple[str, ModalServerDouble], *, pictures: bool) -> list[Check]:
    """What is checked of `app`, with `servers` doubled for it."""
    from deploy.check_control import check_control
    from deploy.check_faults import check_bench, check_blame, check_kept_tokens, check_lookup
    from deploy.check_local import check_container, check_filling

    plain: list[Check] = [
        ("no deprecated name of modal", "", lambda: check_names(app.read_text())),
        ("what is typed is refused by name, and priced as billed", "M4 M5 M6 M7", check_typed),
        (f"all {len(PROBES)} settings reach Modal", "", lambda: check_settings(app)),
        ("and do with routing by LoRAs", "", lambda: check_settings(app, "affinity")),
        ("no secret is sent, all sources are, rights are least", "", lambda: check_secrets(app)),
        ("the images hold every import, pinned", "", lambda: check_image(app)),
        ("kept tokens are proven", "M2", lambda: check_kept_tokens(*servers)),
        ("a URL that cannot be looked up is said in words", "M8", check_lookup),
        ("smoke and bench ask the deployed worker", "M11", lambda: check_bench(app)),
        ("what is mistyped is said to be so", "M12", lambda: check_blame(app)),
    ]
    drawing: list[Check] = [
        ("filling the volume follows its settings", "", lambda: check_filling(app)),
        (
            "hooks, ASGI app, a picture, damaged weights",
            "M1 M3 M9 M11",
            lambda: check_container(app, servers[0]),
        ),
        ("control without a GPU, both ways of routing", "M10", lambda: check_control(app, servers)),
    ]
    return [*plain, *drawing] if pictures else plain


def main() -> int:
    """Run every check; 1 when one finds a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", type=Path, default=APP, help="another app.py, for the controls")
    parser.add_argument("--no-picture", action="store_true", help="definitions only")
    parser.add_argument("--only", default="", help="checks with this in their title, or M1 to M12")
    options = parser.parse_args()
    failed = False
    with modal_server_double() as servers:
        for title, faults, check in checks(options.app, servers, pictures=not options.no_picture):
            if options.only not in title and options.only not in faults.split():
                continue
            problems = check()
            failed |= bool(problems)
            named = f" ({', '.join(faults.split())})" if faults else ""
            print(f"{'FAILED' if problems else 'ok    '} {title}{named}", flush=True)
            for problem in problems:
                print(f"       {problem}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
