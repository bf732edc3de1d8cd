"""The deployment's settings: what is refused, what is private, what the worker is told."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sdxl_worker.answering.result import gpu_name
from sdxl_worker.deploying.image import image_packages
from sdxl_worker.deploying.retiring import RetireWhenFailed
from sdxl_worker.deploying.settings import Deployment, Snapshot, passed_on
from sdxl_worker.settings import Dtype

REPOSITORY = Path(__file__).resolve().parents[3]
deploy_check = importlib.import_module("deploy.check")


def read(**values: str) -> Deployment:
    with deploy_check.environment(values):
        return Deployment.from_environment()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DEPLOY_GPU", "L40S:2", "'L40S:2' is not a GPU's name"),
        ("DEPLOY_GPU", " , ", "at least one GPU"),
        ("DEPLOY_MAX_CONTAINERS", "0", "greater than or equal to 1"),
        ("DEPLOY_SCALEDOWN_WINDOW_SECONDS", "1", "greater than or equal to 2"),
        ("DEPLOY_SCALEDOWN_WINDOW_SECONDS", "4000", "less than or equal to 3600"),
        ("DEPLOY_MAX_INPUTS", "1", "greater than or equal to 2"),
        ("DEPLOY_MIN_CONTAINERS", "5", "must be at most DEPLOY_MAX_CONTAINERS, which is 4"),
        ("DEPLOY_TARGET_INPUTS", "9", "must be at most DEPLOY_MAX_INPUTS, which is 2"),
        ("DEPLOY_APP_NAME", "a b", "pattern"),
        ("DEPLOY_SCALEDOWN", "9", "did you mean DEPLOY_SCALEDOWN_WINDOW_SECONDS?"),
        ("DEPLOY_BASE_MODEL", "x/y", "did you mean BASE_MODEL?"),
        ("VAE_MODEL", "madebyollin/sdxl-vae-fp16-fix", "VAE_MODEL does not work on Modal"),
        ("BASE_MODEL", "///", "hub name such as"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(name: str, value: str, says: str) -> None:
    with pytest.raises((ValidationError, ValueError)) as refusal:
        _ = read(**{name: value}).model_folder

    assert says in str(refusal.value)
    assert name in str(refusal.value) or name.removeprefix("DEPLOY_").lower() in str(refusal.value)


def test_defaults_cost_nothing_while_nobody_asks_and_are_private() -> None:
    deployment = read()

    assert deployment.min_containers == deployment.buffer_containers == 0
    assert deployment.proxy_auth
    assert deployment.snapshot is Snapshot.WEIGHTS


def test_an_old_gpu_in_the_list_means_half_precision() -> None:
    assert read().dtype is Dtype.BFLOAT16
    assert read(DEPLOY_GPU="L4,T4").dtype is Dtype.FLOAT16


def test_the_container_insists_on_a_token() -> None:
    with deploy_check.environment({}), pytest.raises(ValidationError, match="WORKER_API_TOKEN"):
        Deployment.from_environment().worker_settings()


def test_the_worker_gets_what_the_shell_set_but_not_what_the_deployment_decides() -> None:
    values = {
        "WORKER_API_TOKEN": "t" * 16,
        "QUEUE_MAX": "3",
        "WORKER_HOST": "127.0.0.1",
        "HF_HOME": "/x",
    }
    with deploy_check.environment(values):
        settings = Deployment.from_environment().worker_settings()
        told = Deployment.from_environment().container_environment()

    assert (settings.queue_max, settings.worker_host, settings.hf_home) == (3, "0.0.0.0", None)
    assert (settings.device, settings.base_model) == (
        "cuda",
        "/weights/stable-diffusion-xl-base-1.0",
    )
    assert told["QUEUE_MAX"] == "3"
    assert not {"WORKER_API_TOKEN", "WORKER_HOST", "HF_HOME"} & set(told)


def test_auto_is_decided_by_the_deployment_not_by_the_cpu_that_loads_the_weights() -> None:
    values = {"WORKER_API_TOKEN": "t" * 16, "DEVICE": "auto", "DTYPE": "auto", "DEPLOY_GPU": "T4"}
    with deploy_check.environment(values):
        settings = Deployment.from_environment().worker_settings()
    with deploy_check.environment({**values, "DTYPE": "float32", "DEVICE": "cpu"}):
        chosen = Deployment.from_environment().worker_settings()

    assert (settings.device, settings.dtype) == ("cuda", Dtype.FLOAT16)
    assert (chosen.device, chosen.dtype) == ("cpu", Dtype.FLOAT32)


@pytest.mark.parametrize(
    ("gpu", "paid"),
    [("H100", "H100"), ("H100!", "H100"), ("A100", "A100-40GB"), ("L4,T4", None), ("B300", None)],
)
def test_what_was_asked_for_is_what_is_paid_whatever_modal_gives(
    gpu: str, paid: str | None
) -> None:
    with deploy_check.environment({"WORKER_API_TOKEN": "t" * 16, "DEPLOY_GPU": gpu}):
        assert Deployment.from_environment().worker_settings().gpu_name == paid
    stated = {"WORKER_API_TOKEN": "t" * 16, "DEPLOY_GPU": gpu, "GPU_NAME": "H200"}
    with deploy_check.environment(stated):
        assert Deployment.from_environment().worker_settings().gpu_name == "H200"


@pytest.mark.parametrize(
    ("device", "memory_gib", "row"),
    [
        ("NVIDIA A10G", 22, "A10"),
        ("NVIDIA A10", 22, "A10"),
        ("Tesla T4", 15, "T4"),
        ("NVIDIA L4", 22, "L4"),
        ("NVIDIA L40S", 44, "L40S"),
        ("NVIDIA A100-SXM4-40GB", 39, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 79, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA B200", 178, "B200"),
        ("NVIDIA GeForce RTX 4090", 24, "NVIDIA GeForce RTX 4090"),
    ],
)
def test_a_device_is_known_by_what_it_calls_itself(
    monkeypatch: pytest.MonkeyPatch, device: str, memory_gib: int, row: str
) -> None:
    told = SimpleNamespace(total_memory=memory_gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: told)

    assert gpu_name(torch.device("cuda")) == row


def test_secrets_are_never_among_what_is_passed_on() -> None:
    assert not {"WORKER_API_TOKEN", "HUGGINGFACE_HUB_TOKEN"} & passed_on()
    assert {"QUEUE_MAX", "LORA_ALLOWED_HOSTS", "DTYPE"} <= passed_on()


def test_an_unpinned_dependency_stops_the_deployment(tmp_path: Path) -> None:
    for member in ("contract", "worker"):
        (tmp_path / member).mkdir()
        (tmp_path / member / "pyproject.toml").write_text(
            '[project]\nname="x"\ndependencies=["torch>=2", "left-pad"]'
        )
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")

    with pytest.raises(ValueError, match="no version of left-pad"):
        image_packages(tmp_path)


def test_deploy_check_refuses_what_cannot_work_and_notices_where_it_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_typed = importlib.import_module("deploy.check_typed").check_typed
    assert check_typed() == []

    monkeypatch.setattr(Deployment, "_check_worker", lambda *_: None)
    monkeypatch.setattr(Deployment, "region_factor", 1.0)
    problems = "\n".join(check_typed())

    for name in ("QUEUE_MAX=abc", "DTYPE=int8", "DRAW_SPEED=fast"):
        assert f"{name} is let through" in problems
    assert "DEPLOY_REGION=us is priced 1 times, not 1.5" in problems
    assert problems.count("\n") == 5


async def test_a_failed_worker_asks_for_a_fresh_container_once() -> None:
    failed = False
    answered: list[int] = []
    retired: list[int] = []

    async def app(*_: Any) -> None:
        answered.append(len(retired))

    async def retire() -> None:
        retired.append(len(answered))

    middleware = RetireWhenFailed(app, lambda: failed, retire)
    await middleware({"type": "http"}, None, None)
    failed = True
    await middleware({"type": "lifespan"}, None, None)
    for _ in range(2):
        await middleware({"type": "http"}, None, None)

    # After the third answer, not before it, and only once.
    assert retired == [3]


async def test_a_container_whose_start_failed_is_kept_for_a_while() -> None:
    """Each retirement is followed by a paid start: one every five minutes, not one a request."""
    clock, retired = [1000.0], []

    async def app(*_: Any) -> None:
        pass

    async def retire() -> None:
        retired.append(clock[0])

    middleware = RetireWhenFailed(app, lambda: True, retire, patience_s=300, clock=lambda: clock[0])
    for clock[0] in (1000.0, 1001.0, 1299.0, 1300.0, 1301.0):
        await middleware({"type": "http"}, None, None)

    assert retired == [1300.0]


def test_no_secret_is_in_the_settings_that_a_snapshot_keeps() -> None:
    secret = "never-in-a-snapshot"
    values = {"WORKER_API_TOKEN": secret, "HUGGINGFACE_HUB_TOKEN": secret}
    with deploy_check.environment(values):
        settings = Deployment.from_environment().settings_without_secrets()

    assert settings.worker_api_token is None
    assert settings.huggingface_hub_token is None
