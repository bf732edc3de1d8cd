"""What the Modal images install is locked: pinned versions, and a hash for each file."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdxl_worker.deploying.image import (
    CONTROL_LOCK,
    DRAWING_LOCK,
    LOCKS,
    Locked,
    locked_packages,
    read_lock,
)

REPOSITORY = Path(__file__).resolve().parents[3]
check_image = importlib.import_module("deploy.check_image")
lock_images = importlib.import_module("scripts.lock_images")


def lock(name: str) -> dict[str, Locked]:
    return read_lock((REPOSITORY / LOCKS / name).read_text())


@pytest.mark.parametrize("name", [DRAWING_LOCK, CONTROL_LOCK])
def test_a_lock_holds_what_is_needed_as_it_is_pinned_each_file_by_its_hash(name: str) -> None:
    text = (REPOSITORY / LOCKS / name).read_text()

    assert len(lock(name)) == text.count("==") > 15
    assert check_image.lock_problems(name, lock(name), REPOSITORY) == []


def test_torch_is_locked_with_its_cuda_libraries() -> None:
    held = lock(DRAWING_LOCK)

    assert "+" not in held["torch"].version  # PyPI's, not an index of torch's own
    assert {"triton", "nvidia-cublas", "nvidia-cudnn-cu13", "cuda-toolkit"} <= set(held)
    assert not {"torch", "triton", "diffusers"} & set(lock(CONTROL_LOCK))


def test_what_is_old_incomplete_or_without_a_hash_is_told() -> None:
    held = lock(CONTROL_LOCK)
    held["pydantic"] = replace(held["pydantic"], version="2.0.0")
    held["starlette"] = replace(held["starlette"], sha256s=frozenset())
    held["left-pad"] = Locked("1.3.0", frozenset({"0" * 64}))
    del held["anyio"]  # needed only by others

    problems = check_image.lock_problems(CONTROL_LOCK, held, REPOSITORY)

    assert len(problems) == 5
    for said in (
        "anyio is needed and not in control.txt: run make lock",
        "left-pad is in control.txt and not needed",
        "starlette has no hash in control.txt",
    ):
        assert said in problems
    assert any(problem.startswith("pydantic is 2.0.0, and ") for problem in problems)


def test_a_hash_that_is_none_does_not_count() -> None:
    good = "a" * 64
    text = (
        f"one==1 \\\n    --hash=sha256:{good}\ntwo==2 \\\n    --hash=sha256:{good[1:]}\nthree==3\n"
    )

    found = read_lock(text)

    assert found["one"].sha256s == {good}
    assert not found["two"].sha256s
    assert not found["three"].sha256s


def test_locks_are_made_of_what_the_images_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make lock` without a registry: what uv is told."""
    told: dict[str, list[str]] = {}

    def run(command: list[str], *, input: str, cwd: Path, **_: object) -> object:
        told[command[-1]] = input.splitlines()
        assert "--generate-hashes" in command
        assert not (cwd / command[-1]).exists()  # else uv keeps to what stands there
        (cwd / command[-1]).write_text("a==1\n")
        return SimpleNamespace(returncode=0)

    for name in ("constraints.txt", "worker/pyproject.toml", "contract/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / LOCKS, tmp_path / LOCKS)
    monkeypatch.setattr(lock_images.subprocess, "run", run)
    assert lock_images.main(tmp_path) == 0

    assert told == {str(LOCKS / name): names for name, names in locked_packages(REPOSITORY).items()}
