"""The examples of the pages of clients, each run as it stands by the client itself."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from testkit.clients.pages import NAME, Example, examples
from testkit.clients.stack import HERE, Stack, certified, left_out

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(600)]
# Run without processes by backend/tests/dialects/test_client_pages.py; sizes that a client has
# built in are none of the small model's, besides.
_ELSEWHERE = ("openai", "replicate", "webuiapi", "sdxl_client", "standardwebhooks")


def _command(example: Example) -> list[str]:
    if example.language == "javascript":
        node = shutil.which("node")
        if node is None or not (HERE / "node_modules" / "openai").exists():
            left_out("the JavaScript clients are not there: make setup-clients (needs Node 20)")
        return [str(node), "--input-type=module", "-"]
    return [sys.executable, "-"]


RUN = [
    one
    for one in examples("python", "javascript")
    if one.language == "javascript" or not any(map(one.imports, _ELSEWHERE))
]


# Long, since `test_real_clients.py` runs the same clients in the same ways.
@pytest.mark.long
@pytest.mark.parametrize("example", RUN, ids=lambda one: one.name)
def test_a_pages_lines_run(
    example: Example, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    command, environment = _command(example), dict(os.environ)
    stack: Stack = request.getfixturevalue("stack")  # not started for a client that is not there
    code = example.pointed(stack.url, stack.key)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "apple.png")
    with contextlib.ExitStack() as opened:
        if example.imports("fal_client"):
            environment |= opened.enter_context(certified(stack))
            [page] = [one for one in examples("bash") if one.page == example.page]
            exported = re.findall(r"^export (\w+)=(.*)$", page.pointed(stack.url, stack.key), re.M)
            for name, value in exported:  # the page's, but for the host
                found = environment[name]
                host = found.partition("/")[0]
                assert value.replace(NAME, host) == found, f"the page has {name}={value}"
            code = code.replace(NAME, environment["FAL_RUN_HOST"].partition("/")[0])
        done = subprocess.run(
            command,
            cwd=HERE if example.language == "javascript" else tmp_path,
            env=environment | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            input=code,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.strip(), "it prints nothing"


def test_pages_have_examples_of_each_language() -> None:
    languages = [one.language for one in RUN]
    assert languages.count("python") >= 2
    assert languages.count("javascript") >= 4
