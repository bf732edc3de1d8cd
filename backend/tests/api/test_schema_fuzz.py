"""The OpenAPI documents against the running server: schemathesis with every check on.

Made-up calls, right and wrong ones, to every operation, of the API itself and of every dialect.
No answer may be the server's fault, or one that the document does not name. By default a few calls
to each; `make test-all` makes many, chains of calls that use each other's ids, and calls of a
page's session and to a server without keys.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import URL
from starlette.routing import Mount

from sdxl_contract.limits import ModelLimits
from testkit.backend import Backend, StartBackend, add_key, listening
from testkit.doubles.inference_double import InferenceDouble

CONFIG = Path(__file__).with_name("schemathesis.toml")
_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch"})
SMALL = ModelLimits(native_size=64, min_side=64, max_side=64)
SHORT = ("--phases", "fuzzing", "--max-examples", "1")
LONG = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples")


def whole_document(app: FastAPI) -> dict[str, Any]:
    """The app's document with the paths of its mounted applications below their prefixes."""
    whole: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    for mount in app.routes:
        if not isinstance(mount, Mount) or not isinstance(mount.app, FastAPI):
            continue
        name = mount.path.strip("/").replace("/", "_")
        # Components of one name are not the same thing in two documents.
        text = json.dumps(mount.app.openapi()).replace(
            '"#/components/schemas/', f'"#/components/schemas/{name}_'
        )
        part = json.loads(text)
        for path, operations in part["paths"].items():
            for method in _METHODS & set(operations):
                operation = operations[method]
                operation["operationId"] = f"{name}_{operation['operationId']}"
                operation["security"] = [
                    {f"{name}_{scheme}": scopes for scheme, scopes in way.items()}
                    for way in operation.get("security", [])
                ]
            whole["paths"][mount.path + path] = operations
        for kind, components in part.get("components", {}).items():
            into = whole["components"].setdefault(kind, {})
            for key, component in components.items():
                into[f"{name}_{key}"] = component
    return whole


def operations_of(document: dict[str, Any]) -> int:
    """How many operations a document has."""
    return sum(len(_METHODS & set(methods)) for methods in document["paths"].values())


async def fuzz(document: Path, url: str, *arguments: str) -> str:
    """What schemathesis says; an error where a check fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(CONFIG)),
        *("run", str(document), "--url", url, "--checks", "all", "--seed", "1"),
        *("--warnings", "off", "--suppress-health-check", "all", "--request-timeout", "30"),
        *("--generation-database", "none", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said[-20_000:]
    return said


def check_all_were_tested(document: Path, said: str, *, left_out: int = 0) -> None:
    whole = operations_of(json.loads(document.read_text()))
    count = whole - left_out
    assert re.search(rf"Selected: {count}/{whole}\n +Tested: {count}\n", said), said


@pytest.fixture
async def running(
    start_backend: StartBackend, tmp_path: Path
) -> AsyncIterator[tuple[Backend, Path, str]]:
    """A server of small pictures, all that it says of itself, and its URL."""
    inference = InferenceDouble(limits=SMALL)
    async with (
        start_backend(inference=inference, sync_wait_seconds=0.2, job_concurrency=8) as backend,
        listening(backend) as url,
    ):
        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(whole_document(backend.app)))
        yield backend, document, url


@pytest.mark.slow
async def test_no_call_to_any_operation_is_answered_otherwise_than_documented(
    running: tuple[Backend, Path, str], database_url: URL
) -> None:
    _, document, url = running
    key = (await add_key(database_url, "local"))["Authorization"]
    said = await fuzz(document, url, *SHORT, "-H", f"Authorization: {key}")
    check_all_were_tested(document, said)


@pytest.mark.long
async def test_nor_is_one_of_many(running: tuple[Backend, Path, str], database_url: URL) -> None:
    backend, document, url = running
    key, page_key = [(await add_key(database_url, "local"))["Authorization"] for _ in range(2)]
    signed_in = await backend.http.post(
        "/api/v1/session", json={"api_key": page_key.removeprefix("Bearer ")}
    )
    cookie = signed_in.headers["set-cookie"].partition(";")[0]
    # Whoever revokes the own key, or signs out, ends the run's rights: all that follows were 401.
    stays = ("--exclude-name", "DELETE /api/v1/keys/{key_id}")
    said = await fuzz(document, url, *LONG, "5", "-H", f"Authorization: {key}", *stays)
    check_all_were_tested(document, said, left_out=1)
    mine = await backend.http.get("/api/v1/keys", headers={"Authorization": key})
    assert mine.status_code == 200

    page = ("-H", f"Cookie: {cookie}", "-H", "X-Requested-With: studio")
    # The page's header stays in the calls that are to be without proof. Dialects take no cookie.
    left_out = ("--exclude-path", "/api/v1/session", "--exclude-checks", "ignored_auth")
    await fuzz(document, url, *LONG, "1", *page, *stays, *left_out)


@pytest.mark.long
async def test_the_same_holds_before_the_first_key_is_made(
    running: tuple[Backend, Path, str],
) -> None:
    _, document, url = running
    # The document says how one proves oneself; here nobody has to yet.
    said = await fuzz(document, url, *LONG, "1", "--exclude-checks", "ignored_auth")
    check_all_were_tested(document, said)
