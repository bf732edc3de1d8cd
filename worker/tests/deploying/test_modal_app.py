"""The Modal deployment: the check that `make deploy-check` runs, and the controls of the check."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdxl_worker.deploying.image import CONTROL_LOCK, DRAWING_LOCK, LOCKS
from sdxl_worker.deploying.settings import Deployment

pytestmark = pytest.mark.process


REPOSITORY = Path(__file__).resolve().parents[3]
deploy_check = importlib.import_module("deploy.check")

SOURCE = deploy_check.APP.read_text()


def rewritten(tmp_path: Path, tree: ast.Module) -> Path:
    """A copy of app.py beside a copy of what it reads."""
    path = tmp_path / "worker" / "app.py"
    path.parent.mkdir(parents=True)
    path.write_text(ast.unparse(tree))
    for name in ("constraints.txt", "worker/pyproject.toml", "contract/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / LOCKS, tmp_path / LOCKS)
    return path


@pytest.mark.parametrize(
    ("options", "count"),
    # Of containers' lives, test_restoring.py, test_starting.py and test_control.py have the parts.
    [(["--no-picture"], 10), pytest.param([], 13, marks=pytest.mark.long)],
    ids=["what Modal is told", "all"],
)
def test_deploy_check_passes(options: list[str], count: int) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deploy.check", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall("^ok ", result.stdout, re.MULTILINE)) == count


@pytest.mark.long
def test_every_dropped_setting_is_noticed(tmp_path: Path) -> None:
    """The control: without the keywords and the baked environment every probe must fail."""

    class Drop(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> Any:
            self.generic_visit(node)
            kept = (None, "image", "env", "secrets", "volumes", "port", "copy", "uv_version")
            decorators = {"app.cls", "app.server", "app.function", "modal.asgi_app"}
            if ast.unparse(node.func) in decorators:
                node.keywords = [k for k in node.keywords if k.arg in kept]
            if ast.unparse(node.func) == "modal.concurrent":
                node.keywords = [ast.keyword("max_inputs", ast.Constant(4))]
            if ast.unparse(node.func) == "modal.enter":
                node.keywords = []
            if ast.unparse(node.func).endswith(".env"):
                node.args = [ast.Dict([], [])]
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
            self.generic_visit(node)
            if ast.unparse(node.target) == "CONTAINER":
                without(node, lambda key: key not in {"image", "env", "secrets", "volumes"})
            return node

        def visit_Attribute(self, node: ast.Attribute) -> Any:
            self.generic_visit(node)
            name = node.attr
            if ast.unparse(node.value) == "deployment" and name in {
                "app_name",
                "weights_volume",
                "weights_mount",
                "lora_volume",
                "lora_mount",
                "code_volume",
                "code_mount",
                "secret_name",
            }:
                fixed = Deployment.model_fields[name].default
                return ast.Constant(fixed)
            return node

    path = rewritten(tmp_path, Drop().visit(ast.parse(SOURCE)))
    for routing in ("queue", "affinity"):
        problems = deploy_check.check_settings(path, routing)
        named = {problem.partition("=")[0] for problem in problems}
        others = next(only for way, only in deploy_check.ONLY.items() if way != routing)
        # Which way it is stays to be seen, or no probe would be looked at.
        assert named == set(deploy_check.PROBES) - others - {"DEPLOY_ROUTING"}


def without(node: ast.AnnAssign, dropped: Callable[[str], bool]) -> None:
    """Take settings out of app.py's CONTAINER."""
    settings = node.value
    assert isinstance(settings, ast.Dict)
    keys = [ast.literal_eval(key) for key in settings.keys if key is not None]
    pairs = zip(keys, settings.keys, settings.values, strict=True)
    left = [(key, value) for name, key, value in pairs if not dropped(name)]
    settings.keys, settings.values = [key for key, _ in left], [value for _, value in left]


@pytest.mark.parametrize(
    ("keyword", "setting"),
    [
        ("scaledown_window", "DEPLOY_SCALEDOWN_WINDOW_SECONDS"),
        ("requires_proxy_auth", "DEPLOY_PROXY_AUTH"),
        ("max_containers", "DEPLOY_MAX_CONTAINERS"),
    ],
)
def test_one_dropped_setting_is_the_one_named(tmp_path: Path, keyword: str, setting: str) -> None:
    tree = ast.parse(SOURCE)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if k.arg != keyword]
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CONTAINER":
            without(node, lambda name: name == keyword)

    problems = deploy_check.check_settings(rewritten(tmp_path, tree))

    assert [problem.partition("=")[0] for problem in problems] == [setting]


@pytest.mark.parametrize(
    ("what", "instead", "says"),
    [
        ("revision=deployment.base_model_revision", "revision=None", "with revision None"),
        ("        deployment.base_model,\n", "        'a/b',\n", "with source 'a/b'"),
        ("HUGGINGFACE_HUB_TOKEN", "HF_TOKEN", "with token None"),
        ("force=force", "force=False", "with force False"),
        ('os.environ.get("DTYPE") != Dtype.FLOAT32', "True", "with half True"),
        ("deployment.model_folder.parent,\n", "Path('/x'),\n", "with root"),
    ],
)
def test_a_setting_that_the_filling_does_not_follow_is_noticed(
    tmp_path: Path, what: str, instead: str, says: str
) -> None:
    head, mark, tail = SOURCE.partition("def download_weights")
    assert what in tail
    path = rewritten(tmp_path, ast.parse(head + mark + tail.replace(what, instead, 1)))
    (problem,) = importlib.import_module("deploy.check_local").check_filling(path)

    assert says in problem


@pytest.mark.parametrize(
    ("where", "setting"),
    [
        ("    memory=deployment.memory_mib, timeout=7200", "DEPLOY_MEMORY_MIB"),
        ("volumes={deployment.weights_mount: weights}", "DEPLOY_WEIGHTS_MOUNT"),
    ],
)
def test_a_setting_dropped_where_the_volume_is_filled_is_noticed(
    tmp_path: Path, where: str, setting: str
) -> None:
    fixed = re.sub(
        r"deployment\.(\w+)", lambda m: repr(Deployment.model_fields[m[1]].default), where
    )
    assert SOURCE.count(where) == 1
    path = rewritten(tmp_path, ast.parse(SOURCE.replace(where, fixed)))

    assert [p.partition("=")[0] for p in deploy_check.check_settings(path)] == [setting]


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    """`make deploy-check` of another app.py's hooks; in a process of its own, as Modal's client
    stays with the first servers that it met."""
    return subprocess.run(
        [sys.executable, "-m", "deploy.check", "--app", str(path), "--only", "hooks"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def before_the_weights(tmp_path: Path, *lines: str) -> Path:
    """app.py with `lines` before it reads the weights, which a snapshot keeps."""
    line = "        self.begun = begin(deployment, settings)"
    assert SOURCE.count(line) == 1
    more = "".join(f"        {one}\n" for one in lines)
    return rewritten(tmp_path, ast.parse(SOURCE.replace(line, f"{more}{line}")))


@pytest.mark.long
def test_a_question_to_the_gpu_s_driver_before_the_snapshot_is_noticed(tmp_path: Path) -> None:
    result = checked(before_the_weights(tmp_path, "import torch", "torch.cuda.is_available()"))

    assert result.returncode == 1
    assert "asks the GPU's driver: cudaGetDeviceCount (by app.py" in result.stdout
    assert len(re.findall("^FAILED", result.stdout, re.MULTILINE)) == 1


@pytest.mark.long
def test_without_the_guard_the_libraries_ask_the_driver_while_they_are_imported(
    tmp_path: Path,
) -> None:
    path = before_the_weights(
        tmp_path,
        "import contextlib",
        "from sdxl_worker.deploying import starting",
        "starting.without_cuda = contextlib.nullcontext",
    )
    result = checked(path)

    assert result.returncode == 1
    assert "asks the GPU's driver: cudaGetDeviceCount" in result.stdout


@pytest.mark.parametrize(
    "old",
    [
        "app.cls(keep_warm=1)",
        "app.cls(container_idle_timeout=9)",
        "modal.web_endpoint()",
        "modal.gpu.A100()",
        "modal.Volume.lookup('x')",
        "class Worker:\n    def __init__(self): ...",
    ],
)
def test_old_names_of_modal_are_noticed(old: str) -> None:
    assert deploy_check.check_names(old) != []


def test_a_secret_baked_into_the_image_is_noticed(tmp_path: Path) -> None:
    leaky = SOURCE.replace(
        ".env(deployment.container_environment())",
        ".env({'TOKEN': os.environ.get('WORKER_API_TOKEN', 'none')})",
    )
    problems = deploy_check.check_secrets(rewritten(tmp_path, ast.parse(leaky)))

    assert any("secret of the environment" in problem for problem in problems)


@pytest.mark.parametrize(
    ("what", "instead", "says"),
    [
        (
            ".env(deployment.container_environment())",
            ".env({'T': base64.b64encode(os.environ.get('WORKER_API_TOKEN', '').encode())"
            ".decode()})",
            "a secret of the environment is sent",
        ),
        (
            '.add_local_python_source("sdxl_contract", "sdxl_worker", copy=True)',
            '.add_local_python_source("sdxl_contract", "sdxl_worker", "testkit", copy=True)',
            "/root/testkit/__init__.py is sent to Modal",
        ),
        (
            '.add_local_python_source("sdxl_contract", "sdxl_worker", copy=True)',
            '.add_local_python_source("sdxl_worker", copy=True)',
            "errors.py is not sent to Modal",
        ),
        ('    "secrets": [secret],\n', "", "Worker.* does not get the secret"),
        ("image=control_image, secrets=[secret]", "image=control_image", "control does not get"),
        (', required_keys=["WORKER_API_TOKEN"]', "", "need not hold WORKER_API_TOKEN"),
        (".with_mount_options(read_only=True)", "", "could write the weights"),
    ],
)
def test_too_much_sent_or_allowed_is_noticed(
    tmp_path: Path, what: str, instead: str, says: str
) -> None:
    assert SOURCE.count(what) == 1
    path = rewritten(tmp_path, ast.parse(SOURCE.replace(what, instead)))

    assert any(says in problem for problem in deploy_check.check_secrets(path))


@pytest.mark.long
def test_a_container_that_tells_nothing_of_itself_is_noticed(tmp_path: Path) -> None:
    silent = SOURCE.replace("beside=self.reporter.run", "beside=None")
    path = rewritten(tmp_path, ast.parse(silent))
    control = importlib.import_module("deploy.check_control")
    with importlib.import_module("deploy.modal_server_double").modal_server_double() as servers:
        (first, *_) = control.check_control(path, servers, ["queue"])

    assert first == "queue: a request that is drawn is unknown"


def unlock(lock: Path, package: str) -> None:
    """Take a package, and its hashes, out of a lock."""
    text, count = re.subn(rf"^{package}==.*\n( +--hash.*\n)+", "", lock.read_text(), flags=re.M)
    assert count == 1
    lock.write_text(text)


def test_a_package_that_the_control_lacks_is_noticed(tmp_path: Path) -> None:
    path = rewritten(tmp_path, ast.parse(SOURCE))
    unlock(tmp_path / LOCKS / CONTROL_LOCK, "fastapi")
    problems = deploy_check.check_image(path)

    assert any("the control does not start: " in problem for problem in problems)
    assert "fastapi is needed and not in control.txt: run make lock" in problems


@pytest.mark.long
def test_an_image_without_a_compiler_is_noticed(tmp_path: Path) -> None:
    base = "modal.Image.debian_slim(python_version=PYTHON)"
    assert SOURCE.count(base) == 1
    bare = SOURCE.replace(base, 'modal.Image.from_registry("python:3.11-slim")')
    problems = deploy_check.check_image(rewritten(tmp_path, ast.parse(bare)))

    assert "no image holds a C compiler: compiled and fp8 would draw exactly" in problems
    assert deploy_check.check_image() == []


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("--require-hashes --no-build", "--no-build"),
        ("uv_version=UV", "find_links='https://example.com'"),
        (".uv_pip_install(\n            req", ".uv_pip_install('left-pad', req"),
    ],
)
def test_an_image_that_takes_more_than_its_lock_is_noticed(
    tmp_path: Path, what: str, instead: str
) -> None:
    assert SOURCE.count(what) == 1
    path = rewritten(tmp_path, ast.parse(SOURCE.replace(what, instead)))

    assert "something else than its lock" in deploy_check.check_image(path)[0]


def test_code_that_every_start_would_compile_is_noticed(tmp_path: Path) -> None:
    source = SOURCE.replace("        .run_commands(COMPILE)\n", "")
    problems = deploy_check.check_image(rewritten(tmp_path, ast.parse(source)))

    assert problems == ["2 images hold the project's code without compiling it"]


def test_a_package_missing_from_the_image_is_noticed(tmp_path: Path) -> None:
    path = rewritten(tmp_path, ast.parse(SOURCE))
    unlock(tmp_path / LOCKS / DRAWING_LOCK, "structlog")

    assert "structlog is imported and not installed in the image" in deploy_check.check_image(path)


def test_an_import_of_app_py_itself_that_the_image_lacks_is_noticed(tmp_path: Path) -> None:
    source = SOURCE.replace("import modal\n", "import modal\nimport procrastinate\n", 1)
    path = rewritten(tmp_path, ast.parse(source))

    problems = deploy_check.check_image(path)

    assert "procrastinate is imported and not installed in the image" in problems


def test_modal_finds_what_to_run_by_the_documented_commands() -> None:
    code = (
        "from modal.cli.import_refs import import_and_filter as find, parse_import_ref as ref\n"
        "for name in ('::smoke', '::download_weights', '::bench'):\n"
        "    runnable = find(ref('worker/app.py' + name), base_cmd='modal run')[0]\n"
        "    print(type(runnable).__name__, getattr(runnable, 'info', runnable))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    kinds = [line.split()[0] for line in result.stdout.splitlines()]
    assert kinds == ["LocalEntrypoint", "Function", "LocalEntrypoint"]
    assert "download_weights" in result.stdout.splitlines()[1]


def test_the_container_reads_the_same_deployment_without_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the container app.py is imported again: alone, and under the image's environment."""
    import modal

    values = {name: probe.value for name, probe in deploy_check.PROBES.items()}
    outside = deploy_check.load_app(deploy_check.APP, values)
    with deploy_check.environment(values):
        baked = outside.deployment.container_environment()
    lonely = tmp_path / "root" / "app.py"
    lonely.parent.mkdir()
    lonely.write_text(SOURCE)
    monkeypatch.setattr(modal, "is_local", lambda: False)

    inside = deploy_check.load_app(lonely, baked)

    assert inside.deployment == outside.deployment
