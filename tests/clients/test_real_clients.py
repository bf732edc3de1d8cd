"""Each client itself, against the real backend and worker: all of them draw the same picture.

What they draw is compared with what the API draws for the same wish: pixel by pixel, with the LoRA.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from testkit.clients.stack import (
    CLIENTS_PYTHON,
    HERE,
    LORA_FILE,
    SCALE,
    Drive,
    Stack,
    certified,
    left_out,
)

# `make test` has the same calls in backend/tests/dialects; `make test-clients` runs the clients.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.process,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the clients' packages."""
    found = shutil.which("node")
    if found is None or not (HERE / "node_modules" / "openai").exists():
        left_out("the JavaScript clients are not there: make setup-clients (needs Node 20)")
    return str(found)


def test_openai(stack: Stack, drive: Drive) -> None:
    told = drive(sys.executable, "python/with_openai.py")
    assert told.pictures == [stack.styled] * 3
    assert told.facts["kinds"][-1] == "completed"
    assert told.facts["edited"]
    assert told.facts["seed"] == 7
    assert "gpt-image-1" in told.facts["models"]
    assert told.facts["error"] == "model_not_found"


def test_litellm(stack: Stack, drive: Drive) -> None:
    told = drive(sys.executable, "python/with_litellm.py", LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert told.pictures == [stack.styled]
    assert told.facts == {"edited": True, "error": "AuthenticationError"}


def test_langchain(drive: Drive) -> None:
    told = drive(sys.executable, "python/with_langchain.py")
    assert told.facts == {"as_asked": True, "error": "AuthenticationError"}


def test_webuiapi(stack: Stack, drive: Drive) -> None:
    told = drive(sys.executable, "python/with_webuiapi.py")
    assert told.pictures == [stack.styled]
    facts = told.facts
    assert (facts["over"], facts["seed"], facts["models"], facts["idle"]) == ([64, 64], 7, 1, 0)
    assert facts["loras"] == ["Ink"]
    assert "Euler a" in facts["samplers"]
    assert f"<lora:Ink:{SCALE}>" in facts["infotext"]
    assert facts["options"]


@pytest.mark.parametrize("version", ["1.0.7", "2.0.0b4"])
def test_replicate(version: str, request: pytest.FixtureRequest) -> None:
    # The first is this environment's own: the two cannot live in one.
    runs = sys.executable if version.startswith("1") else str(CLIENTS_PYTHON)
    if not Path(runs).exists():
        left_out(f"replicate {version} is not there: make setup-clients")
    # Not started for a client that is not there.
    stack: Stack = request.getfixturevalue("stack")
    drive: Drive = request.getfixturevalue("drive")
    told = drive(runs, "python/with_replicate.py", str(LORA_FILE))
    assert told.pictures == [stack.styled] * 3
    assert told.facts["version"] == version
    assert (told.facts["status"], told.facts["listed"]) == ("succeeded", True)
    assert told.facts["over"]
    assert "404" in told.facts["error"] or "not served" in told.facts["error"]


def test_fal_client(stack: Stack, drive: Drive) -> None:
    with certified(stack) as environment:
        told = drive(sys.executable, "python/with_fal.py", str(LORA_FILE), **environment)
    assert told.pictures == [stack.styled] * 3
    assert (told.facts["seed"], told.facts["ended"]) == (7, "Completed")
    assert set(told.facts["states"]) <= {"Queued", "InProgress", "Completed"}
    assert told.facts["over"]
    assert told.facts["stored"]
    assert "422" in told.facts["error"]
    assert "square_hd" in told.facts["error"]


def test_mcp(stack: Stack, drive: Drive) -> None:
    told = drive(sys.executable, "python/with_mcp.py")
    assert told.pictures == [stack.styled]
    assert {"generate_image", "get_image", "list_loras", "cancel"} <= set(told.facts["tools"])
    assert told.facts["preview"] == "ffd8"
    assert "Ink" in told.facts["loras"]


def test_standardwebhooks(drive: Drive) -> None:
    told = drive(sys.executable, "python/with_standardwebhooks.py")
    assert told.facts == {"type": "content.succeeded", "same": True, "forged": "refused"}


def test_openai_javascript(node: str, stack: Stack, drive: Drive) -> None:
    told = drive(node, "javascript/with_openai.mjs")
    assert told.pictures == [stack.styled] * 2
    assert told.facts["kinds"][-1] == "image_generation.completed"
    assert told.facts["edited"]
    assert "sdxl-demo" in " ".join(told.facts["models"])
    assert told.facts["error"].startswith("404 ")


def test_replicate_javascript(node: str, stack: Stack, drive: Drive) -> None:
    told = drive(node, "javascript/with_replicate.mjs")
    assert told.pictures == [stack.styled] * 2
    assert told.facts["status"] == "succeeded"
    assert (told.facts["signed"], told.facts["forged"]) == (True, False)
    assert told.facts["over"]
    assert told.facts["error"].startswith("404 ")


def test_fal_javascript(node: str, stack: Stack, drive: Drive) -> None:
    told = drive(node, "javascript/with_fal.mjs", str(LORA_FILE))
    assert told.pictures == [stack.styled] * 3
    assert told.facts["seed"] == 7
    assert told.facts["states"][-1] == "COMPLETED"
    assert told.facts["over"]
    assert told.facts["same"]
    assert told.facts["error"].startswith("422 ")


def test_the_ai_sdk(node: str, stack: Stack, drive: Drive) -> None:
    told = drive(node, "javascript/with_ai_sdk.mjs")
    found = dict(zip(told.facts["providers"], told.pictures, strict=True))
    # The first cannot choose the seed.
    assert found.pop("openai").startswith("(64, 64):")
    assert found == dict.fromkeys(("compatible", "replicate", "fal"), stack.styled)
    assert told.facts["error"].startswith("422 ")


def test_sillytaverns_server(node: str, stack: Stack, drive: Drive) -> None:
    if not Path(HERE, "sillytavern", "node_modules", "sillytavern").exists():
        left_out("SillyTavern is not there: make setup-clients")
    told = drive(node, "javascript/with_sillytavern.mjs")
    assert told.pictures == [stack.styled]
    assert told.facts["model"] in told.facts["models"][0]["value"]
    assert "Euler a" in told.facts["samplers"]
    assert "karras" in told.facts["schedulers"]
    assert told.facts["wrong"] == 500  # its own answer to our 401
