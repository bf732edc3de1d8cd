"""A worker that a snapshot of the GPU kept serves only if it is what it was; else all is read anew.

On a CPU, where the process itself stands for the snapshot: what is restored is what is still here.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from pydantic import SecretStr

from sdxl_contract.result import HealthStatus
from sdxl_worker.deploying import restoring, starting
from sdxl_worker.deploying.restoring import Proof, problem_of
from sdxl_worker.deploying.settings import Deployment, Snapshot, without_secrets
from sdxl_worker.deploying.starting import Begun, Weights, begin, go_on
from sdxl_worker.deploying.volume import fill, read_manifest
from sdxl_worker.engine import Engine
from sdxl_worker.loading import imports
from sdxl_worker.settings import Dtype, Settings
from testkit.worker import MODEL

pytestmark = pytest.mark.process


deploy_check = importlib.import_module("deploy.check")
TOKEN = SecretStr("today-and-not-the-one-of-the-snapshot")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled volume with the small model."""
    root = tmp_path_factory.mktemp("volume")
    fill(root, str(MODEL))
    return root / MODEL.name


def deployment(volume: Path, snapshot: Snapshot = Snapshot.GPU) -> Deployment:
    return Deployment(base_model=volume.name, weights_mount=str(volume.parent), snapshot=snapshot)


def settings(volume: Path, **changes: Any) -> Settings:
    known: dict[str, Any] = {
        "device": "cpu",
        "dtype": Dtype.FLOAT32,
        "base_model": str(volume),
        "warmup": False,
    }
    return Settings(**(known | changes))


@pytest.fixture(scope="module")
def begun(volume: Path) -> Begun:
    """What a snapshot of the GPU holds."""
    return begin(deployment(volume), without_secrets(settings(volume)))


def restored(begun: Begun, volume: Path, **changes: Any) -> starting.Started:
    started = go_on(begun, deployment(volume), settings(volume, **changes))
    asyncio.run(started.load())
    return started


def test_a_worker_that_is_what_it_was_serves_at_once(begun: Begun, volume: Path) -> None:
    assert begun.held is not None
    started = restored(begun, volume, worker_api_token=TOKEN)
    health = started.engine.health()

    assert started.engine is begun.held.engine
    assert health.status is HealthStatus.READY
    assert health.start is not None
    assert (health.start.way, health.start.fell_back) == ("gpu", None)
    assert set(health.start.seconds) == {"check"}
    assert begun.held.settings.worker_api_token is None


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts what would be read from the volume, instead of reading it."""
    read: list[str] = []

    def read_weights(*_: object) -> Weights:
        read.append("anew")
        return Weights(problem="read anew")

    monkeypatch.setattr(starting, "read_weights", read_weights)
    return read


def look(change: Callable[[Proof], Proof]) -> Callable[..., str | None]:
    """`problem_of` where the second look finds another thing."""

    async def prove_again(engine: Engine) -> Proof:
        return change(await engine.look(restoring.prove))

    return lambda held, now: problem_of(held, now, prove_again)


async def broken(engine: Engine) -> Proof:
    raise RuntimeError("CUDA error: an illegal memory access at /secret/path")


async def silent(engine: Engine) -> Proof:
    await asyncio.sleep(3600)
    raise AssertionError


def told(prove_again: Callable[[Engine], Awaitable[Proof]]) -> Callable[..., str | None]:
    return lambda held, now: problem_of(held, now, prove_again, 0.02)


FAULTS: dict[str, Callable[..., str | None]] = {
    "another device": look(lambda proof: replace(proof, device="another")),
    "another picture": look(lambda proof: replace(proof, picture="another")),
    "could not draw (RuntimeError)": told(broken),
    "did not answer within 0.02 s": told(silent),
}


@pytest.mark.parametrize("said", FAULTS)
def test_one_that_is_not_is_let_go_and_all_is_read_anew(
    begun: Begun, volume: Path, anew: list[str], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(starting, "problem_of", FAULTS[said])
    started = restored(begun, volume)
    start = started.engine.health().start

    assert begun.held is not None
    assert started.engine is not begun.held.engine
    assert anew == ["anew"]
    assert start is not None
    assert start.way == "volume"
    assert said in str(start.fell_back)
    assert "/" not in str(start.fell_back)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_one_changed_element_is_found(
    begun: Begun, volume: Path, anew: list[str], part: str
) -> None:
    assert begun.held is not None

    def flip(ready: Any) -> None:
        weight = next(iter(getattr(ready.model.pipe, part).parameters()))
        weight.data.view(-1)[7].mul_(-1)

    asyncio.run(begun.held.engine.look(flip))
    try:
        start = restored(begun, volume).engine.health().start
    finally:
        asyncio.run(begun.held.engine.look(flip))

    assert anew == ["anew"]
    assert start is not None
    assert start.fell_back is not None
    assert restored(begun, volume).engine is begun.held.engine


def test_a_setting_or_a_volume_that_changed_meanwhile_is_in_force(
    begun: Begun, volume: Path, anew: list[str]
) -> None:
    start = restored(begun, volume, queue_max=3).engine.health().start
    assert "a setting has changed" in str(start and start.fell_back)

    other = replace(begun, weights=Weights(manifest=None))
    start = restored(other, volume).engine.health().start
    assert "other weights" in str(start and start.fell_back)

    start = restored(replace(begun, held=None), volume).engine.health().start
    assert "was not ready" in str(start and start.fell_back)
    assert anew == ["anew"] * 3


def test_what_is_read_anew_draws(begun: Begun, volume: Path) -> None:
    """The whole way back, once."""
    started = restored(replace(begun, held=None), volume)

    assert started.engine.health().status is HealthStatus.READY
    assert begun.held is not None
    assert asyncio.run(started.engine.look(restoring.prove)) == begun.held.proof


def test_a_start_that_failed_is_not_kept(tmp_path: Path) -> None:
    empty = Deployment(base_model="acme/other", weights_mount=str(tmp_path), snapshot=Snapshot.GPU)
    begun = begin(empty, settings(tmp_path))

    assert begun.held is None
    assert begun.weights.problem is not None


def test_a_snapshot_of_imports_holds_no_weights_and_reads_them_after_it(
    volume: Path, anew: list[str]
) -> None:
    way = deployment(volume, Snapshot.IMPORTS)
    begun = begin(way, settings(volume))
    assert (begun.weights, anew) == (Weights(), [])

    started = go_on(begun, way, settings(volume))
    asyncio.run(started.load())
    assert anew == ["anew"]
    assert started.engine.start is not None
    assert started.engine.start.way == "imports"


def test_weights_in_a_snapshot_are_read_anew_where_a_setting_has_changed(
    volume: Path, anew: list[str]
) -> None:
    way = deployment(volume, Snapshot.WEIGHTS)
    manifest = read_manifest(volume.parent, volume.name)
    kept: Any = object()
    begun = Begun(settings(volume), weights=Weights(model=kept, manifest=manifest))

    go_on(begun, way, settings(volume, worker_api_token=TOKEN))
    assert anew == []
    go_on(begun, way, settings(volume, dtype=Dtype.BFLOAT16))
    assert anew == ["anew"]


def test_two_containers_of_one_snapshot_draw_other_numbers(
    volume: Path, anew: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(renew: bool) -> list[tuple[float, float]]:
        found = []
        for _ in range(2):
            random.seed(1)
            torch.manual_seed(1)
            if renew:
                begun = Begun(settings(volume))
                go_on(begun, deployment(volume, Snapshot.IMPORTS), settings(volume))
            found.append((random.random(), float(torch.rand(1))))
        return found

    one, other = drawn(renew=True)
    assert one[0] != other[0]
    assert one[1] != other[1]
    # The control: they are the same where nothing is renewed.
    monkeypatch.setattr(starting, "renew_randomness", lambda: None)
    one, other = drawn(renew=True)
    assert one == other


@pytest.mark.parametrize("gpus", ["H100", "A100", "B200+", "L40S,A10", "H100!,H200"])
def test_a_gpu_s_memory_goes_back_onto_the_same_kind_alone(gpus: str) -> None:
    values = {"DEPLOY_SNAPSHOT": "gpu", "DEPLOY_GPU": gpus}
    with deploy_check.environment(values), pytest.raises(ValueError, match="DEPLOY_GPU") as refusal:
        Deployment.from_environment(values)
    assert "DEPLOY_SNAPSHOT is gpu" in str(refusal.value)
    for pinned in ("H100!", "A100-40GB", "L40S"):
        assert Deployment(snapshot=Snapshot.GPU, gpu=(pinned,)).keeps_gpu


def test_the_former_name_of_the_setting_is_answered_with_the_new_one() -> None:
    values = {"DEPLOY_MEMORY_SNAPSHOT": "false"}
    with deploy_check.environment(values), pytest.raises(ValueError, match="mean DEPLOY_SNAPSHOT"):
        Deployment.from_environment(values)


@pytest.mark.parametrize("routing", ["queue", "affinity"])
def test_modal_is_told_of_the_gpu_s_memory_only_where_it_is_asked_for(routing: str) -> None:
    told = []
    for snapshot in ("gpu", "weights"):
        values = {"DEPLOY_SNAPSHOT": snapshot, "DEPLOY_ROUTING": routing}
        said = deploy_check.deployed(deploy_check.APP, values)
        function = (said.functions.get("Worker.*") or said.functions["Server"]).ranked_functions[0]
        options = dict(function.function.experimental_options)
        told.append((function.function.checkpointing_enabled, options.get("enable_gpu_snapshot")))

    assert told == [(True, "True"), (True, None)]


def test_imports_for_a_snapshot_ask_the_driver_nothing(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    name = "CUDA_VISIBLE_DEVICES"
    monkeypatch.setattr(imports, "import_libraries", lambda: seen.append(os.environ.get(name)))
    before = os.environ.get(name)
    begin(deployment(volume, Snapshot.IMPORTS), settings(volume))

    assert seen == [""]
    assert os.environ.get(name) == before


@pytest.mark.long
@pytest.mark.process
def test_app_py_s_own_container_with_a_token_rotated_after_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Modal runs it: both hooks, the HTTP app, one picture, the control's view of the start."""
    local = importlib.import_module("deploy.check_local")
    real = starting.begin

    def rotating(*arguments: Any) -> Begun:
        try:
            return real(*arguments)
        finally:
            os.environ["WORKER_API_TOKEN"] = local.ROTATED

    monkeypatch.setattr(starting, "begin", rotating)
    with importlib.import_module("deploy.modal_server_double").modal_server_double() as servers:
        values = local.container_values(str(tmp_path), servers[0]) | {"DEPLOY_SNAPSHOT": "gpu"}
        module = deploy_check.load_app(deploy_check.APP, values)
        with (
            deploy_check.environment(values),
            warnings.catch_warnings(action="ignore"),
            TestClient(_filled(module).web.local()) as http,
        ):
            start = http.get("/health").json()["start"]
            body = {"prompt": "x", "width": 64, "height": 64, "steps": 1}
            answers = [
                http.post("/generate-image", json=body, headers={"Authorization": f"Bearer {t}"})
                for t in (local.TOKEN, local.ROTATED)
            ]

    assert start["way"] == "gpu"
    assert "fell_back" not in start
    assert [answer.status_code for answer in answers] == [401, 200]


def _filled(module: Any) -> Any:
    module.download_weights.local()
    return module.Worker()
