"""The OpenAPI document against the running server: schemathesis with every check on.

Made-up calls, right and wrong ones, to every operation, and chains of calls that use each other's
ids. No answer may be the server's fault, or one that the document does not name.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from sdxl_contract.limits import ModelLimits
from testkit.backend import Backend, StartBackend, add_key, listening
from testkit.doubles.inference_double import InferenceDouble

CONFIG = Path(__file__).with_name("schemathesis.toml")
SMALL = ModelLimits(native_size=64, min_side=64, max_side=64)


async def fuzz(url: str, *arguments: str, examples: int) -> str:
    """What schemathesis says; an error where a check fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(CONFIG)),
        *("run", f"{url}/openapi.json", "--checks", "all", "--seed", "1", "--warnings", "off"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(examples)),
        *("--suppress-health-check", "all", "--request-timeout", "30"),
        *("--generation-database", "none", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said[-20_000:]
    return said


def check_all_were_tested(backend: Backend, said: str) -> None:
    operations = sum(len(methods) for methods in backend.app.openapi()["paths"].values())
    assert re.search(rf"Selected: {operations}/{operations}\n +Tested: {operations}\n", said), said


@pytest.mark.slow
@pytest.mark.long
async def test_no_call_to_any_operation_is_answered_otherwise_than_documented(
    start_backend: StartBackend, database_url: URL
) -> None:
    inference = InferenceDouble(limits=SMALL)
    async with (
        start_backend(inference=inference, sync_wait_seconds=0.2, job_concurrency=8) as backend,
        listening(backend) as url,
    ):
        key = (await add_key(database_url, "local"))["Authorization"]
        said = await fuzz(url, "-H", f"Authorization: {key}", examples=5)
        check_all_were_tested(backend, said)

        answer = await backend.http.post(
            "/api/v1/session", json={"api_key": key.removeprefix("Bearer ")}
        )
        cookie = answer.headers["set-cookie"].partition(";")[0]
        page = ("-H", f"Cookie: {cookie}", "-H", "X-Requested-With: studio")
        # Signing out would end the session that the rest of the run needs; its header stays in the
        # calls that are to be without proof.
        left_out = ("--exclude-path", "/api/v1/session", "--exclude-checks", "ignored_auth")
        await fuzz(url, *page, *left_out, examples=1)


@pytest.mark.slow
@pytest.mark.long
async def test_the_same_holds_before_the_first_key_is_made(start_backend: StartBackend) -> None:
    inference = InferenceDouble(limits=SMALL)
    async with (
        start_backend(inference=inference, sync_wait_seconds=0.2, job_concurrency=8) as backend,
        listening(backend) as url,
    ):
        # The document says how one proves oneself; here nobody has to yet.
        said = await fuzz(url, "--exclude-checks", "ignored_auth", examples=1)
        check_all_were_tested(backend, said)
