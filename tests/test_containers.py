"""The Dockerfiles and docker-compose.yml against the repository: no Docker is here to run them.

What can be held without one: every path that is copied is there and is not ignored, secrets are
ignored, every setting is one, commands and health checks are what the services answer to.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from app.core.settings import Settings as BackendSettings
from sdxl_worker.settings import Settings as WorkerSettings

REPOSITORY = Path(__file__).resolve().parent.parent
DOCKERFILES = ["backend/Dockerfile", "worker/Dockerfile"]
SETTINGS: dict[str, type[BaseSettings]] = {"backend": BackendSettings, "worker": WorkerSettings}
# Of the interpreter, of Hugging Face's libraries, and of the shell.
FOREIGN = {"PYTHONUNBUFFERED", "PATH", "HF_HOME"}
SECONDS = re.compile(r"(\d+)s")


@cache
def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, the rest) of a Dockerfile, continued lines joined."""
    lines = [
        line
        for line in (REPOSITORY / name).read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(kind, rest) for kind, rest in found]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` out of the build."""
    for pattern in (REPOSITORY / ".dockerignore").read_text().split():
        regex = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{regex}(/.*)?", path):
            return True
    return False


def environment(name: str) -> dict[str, str]:
    """What ENV sets."""
    pairs = [word for kind, rest in instructions(name) if kind == "ENV" for word in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


@cache
def compose() -> dict[str, Any]:
    """docker-compose.yml."""
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    return found


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_copied_path_is_there_and_not_ignored(name: str) -> None:
    sources = []
    for kind, rest in instructions(name):
        if kind != "COPY":
            continue
        words = rest.split()
        stage = [word for word in words if word.startswith("--from=")]
        for source in words[len(stage) : -1]:
            if stage and not source.startswith("/src/"):
                assert source == "/venv"  # made in the build stage
                continue
            sources.append(source.removeprefix("/src/"))
    assert "constraints.txt" in sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert not ignored(source), source


def test_what_the_images_need_is_not_ignored_and_secrets_are() -> None:
    needed = (
        "backend/app/static/studio/index.html",
        "backend/migrations/versions/0001_first_tables.py",
        "contract/src/sdxl_contract/request.py",
        "worker/src/sdxl_worker/serve.py",
    )
    for path in needed:
        assert (REPOSITORY / path).exists(), path
        assert not ignored(path), path
    for path in (".env", "backend/.env", ".data/signing.key", "backend/.data/postgres/base",
                 ".git/config", ".venv/bin/python"):  # fmt: skip
        assert ignored(path), path


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_installed_is_pinned_also_what_builds(name: str) -> None:
    runs = [rest for kind, rest in instructions(name) if kind == "RUN"]
    installs = [line for run in runs for line in run.split("&&") if "pip install" in line]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    assert "setuptools wheel" in installs[0]
    assert "--no-build-isolation" in installs[1]
    for word in shlex.split(installs[1]):
        if word.startswith("./"):
            assert (REPOSITORY / word / "pyproject.toml").exists()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_it_runs_its_service_as_a_user_of_its_own(name: str) -> None:
    member = name.split("/")[0]
    found = instructions(name)
    assert [rest for kind, rest in found if kind == "USER"] == ["app"]
    made = " ".join(rest for kind, rest in found if kind == "RUN")
    [volume] = [rest for kind, rest in found if kind == "VOLUME"]
    assert "useradd" in made
    assert f"install -d -o app -g app {volume}" in made
    assert [rest for kind, rest in found if kind == "ENTRYPOINT"] == ['["tini", "--"]']
    assert re.search(r"apt-get install [^&]*\btini\b", made)
    [command] = [json.loads(rest) for kind, rest in found if kind == "CMD"]
    assert command[:2] == ["python", "-m"]
    assert importlib.util.find_spec(command[2]) is not None
    assert environment(name).keys() - FOREIGN <= {
        field.upper() for field in SETTINGS[member].model_fields
    }
    [port] = [rest for kind, rest in found if kind == "EXPOSE"]
    assert port in environment(name).values()


@pytest.mark.parametrize(
    ("name", "path"), [("backend/Dockerfile", "/health/ready"), ("worker/Dockerfile", "/health")]
)
def test_the_health_check_asks_a_place_that_is_there(name: str, path: str) -> None:
    [rest] = [rest for kind, rest in instructions(name) if kind == "HEALTHCHECK"]
    command = json.loads(rest[rest.index("CMD") + 3 :])
    assert command[:2] == ["python", "-c"]
    ast.parse(command[2])
    [variable] = re.findall(r"environ\['(\w+)'\]", command[2])
    assert variable in environment(name)
    assert re.search(r"\}(/[\w/]+)", command[2]).group(1) == path  # type: ignore[union-attr]
    sources = {"backend": "backend/app/api/health.py", "worker": "worker/src/sdxl_worker/api.py"}
    assert f'"{path}"' in (REPOSITORY / sources[name.split("/")[0]]).read_text()


def test_compose_names_files_volumes_and_settings_that_are_there() -> None:
    services = compose()["services"]
    assert set(services) == {"postgres", "backend", "worker"}
    for name, service in services.items():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose()["volumes"]
        if "build" in service:
            assert service["build"] == {"context": ".", "dockerfile": f"{name}/Dockerfile"}
            known = {field.upper() for field in SETTINGS[name].model_fields}
            assert set(service["environment"]) <= known
            mounted = service["volumes"][0].split(":")[1]
            assert ("VOLUME", mounted) in instructions(f"{name}/Dockerfile")
    # Since 18 the image keeps its data below /var/lib/postgresql, in a folder of the version.
    assert services["postgres"]["image"] == "postgres:18"
    assert services["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert services["backend"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert "healthcheck" in services["postgres"]


def test_compose_reaches_each_service_where_it_listens_and_only_from_this_computer() -> None:
    backend, worker = compose()["services"]["backend"], environment("worker/Dockerfile")
    assert all(port.startswith("127.0.0.1:") for port in backend["ports"])
    assert backend["ports"][0].endswith(f":{backend['environment']['PORT']}")
    endpoint = backend["environment"]["MODAL_ENDPOINT_URL"]
    assert f"http://worker:{worker['WORKER_PORT']}/generate-image" in endpoint
    assert "@postgres:5432/app" in backend["environment"]["DATABASE_URL"]
    grace = SECONDS.fullmatch(backend["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > 2 * BackendSettings.model_fields["shutdown_grace_seconds"].default


def test_no_service_keeps_rights_that_it_does_not_use() -> None:
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
    # The image's entry point begins as root and becomes another user.
    assert "cap_add" in compose()["services"]["postgres"]
    assert "cap_add" not in compose()["services"]["backend"]
