"""A container's start, in the two halves that a memory snapshot cuts.

Duty: `begin` before the snapshot, `go_on` after it. Whatever was read before may have changed: the
volume can have been filled anew, or filled at last, settings may be others, and a restored GPU may
not be what it was; then the second half does what the first would have done. Secrets are not read
here at all: the engine's settings are made after the snapshot.
Must not know: Modal, requests. Imports torch only inside, where CUDA may not be asked yet.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.result import StartReport
from sdxl_worker.deploying.compiled_code import CompiledCode, kind_of
from sdxl_worker.deploying.restoring import Held, hold, problem_of, renew_randomness
from sdxl_worker.deploying.settings import Deployment, Snapshot, without_secrets
from sdxl_worker.deploying.single_file import WeightsError
from sdxl_worker.deploying.volume import Manifest, read_manifest, verify
from sdxl_worker.loading.snapshot import without_cuda
from sdxl_worker.loading.weight_reader import start_reading
from sdxl_worker.settings import DrawSpeed, Dtype, Settings

if TYPE_CHECKING:
    from sdxl_worker.engine import Engine
    from sdxl_worker.loading.pipeline import LoadedModel

log = structlog.get_logger()


@dataclass(frozen=True)
class Weights:
    """The model in the CPU's memory, or why there is none.

    Attributes:
        model: on the CPU; None if it could not be read.
        manifest: what was read, hash by hash.
        problem: what is wrong with the volume; a start that raised instead would be tried again
            at once, in a new container with a GPU that is paid for, request after request.
    """

    model: LoadedModel | None = None
    manifest: Manifest | None = None
    problem: str | None = None

    def loaded(self) -> LoadedModel:
        """The model.

        Raises:
            ModelLoadFailed: there is none; the message is for the operator.
        """
        if self.model is None:
            raise ModelLoadFailed(self.problem or "the weights were not read", retry_after=60.0)
        return self.model


def read_weights(deployment: Deployment, settings: Settings) -> Weights:
    """The volume's model in the CPU's memory: read once, hashed while it is read.

    Nothing here asks CUDA anything: the answer, that there is no GPU, would be kept in a snapshot.
    """
    folder = deployment.model_folder
    try:
        # Read, not mapped: a snapshot keeps memory, not the files that it is a view of. The volume
        # is read in the background while torch is imported.
        half = settings.dtype is not Dtype.FLOAT32
        reading = start_reading(folder, half=half, mapped=False, hashed=True)
        with without_cuda():  # around torch and diffusers, which ask while they are imported
            from sdxl_worker.loading.pipeline import load_model

            manifest = verify(folder.parent, folder.name, reading.sha256s() if reading else None)
            on_cpu = settings.model_copy(update={"device": "cpu", "map_weights": False})
            return Weights(load_model(on_cpu, reading), manifest)
    except WeightsError as error:
        return Weights(problem=str(error))


def still_current(weights: Weights, deployment: Deployment, settings: Settings) -> Weights:
    """`weights` if the volume still holds the same; otherwise what it holds now."""
    folder = deployment.model_folder
    if weights.manifest is not None:
        try:
            if read_manifest(folder.parent, folder.name).files == weights.manifest.files:
                return weights
        except WeightsError as error:
            return Weights(problem=str(error))
    return read_weights(deployment, settings)


class Started:
    """The engine of a container that is being started, and what that takes.

    Args:
        weights: of which an engine is made; None where `held` is one.
        way: see `StartReport`, as `fell_back`.
        seconds: of what was done already.

    Attributes:
        code_kept: whether the volume of compiled code has something new, once `load` is through.
    """

    def __init__(
        self,
        weights: Weights | None,
        deployment: Deployment,
        settings: Settings,
        *,
        way: str,
        seconds: dict[str, float],
        held: Engine | None = None,
        fell_back: str | None = None,
    ) -> None:
        from sdxl_worker.engine import Engine

        self._weights = weights
        self._folder = Path(deployment.code_mount)
        self._way = way
        self._seconds = seconds
        self._fell_back = fell_back
        self._is_held = held is not None
        self._code: CompiledCode | None = None
        self.code_kept = False
        self.engine = held or Engine(settings, load=self._move)

    async def load(self) -> None:
        """The engine's own, timed; then what was compiled is kept for other containers."""
        if not self._is_held:
            with _timed(self._seconds, "warm_up"):
                await self.engine.load()
            self._seconds["warm_up"] -= self._seconds.get("to_gpu", 0.0)
        if self._code is not None and self.engine.health().error is None:
            with _timed(self._seconds, "keep_code"):
                self.code_kept = await asyncio.to_thread(self._code.keep)
        self.engine.start = StartReport(
            way=self._way,
            seconds={name: round(seconds, 3) for name, seconds in self._seconds.items()},
            fell_back=self._fell_back,
        )

    def _move(self, settings: Settings) -> LoadedModel:
        from sdxl_worker.loading.pipeline import choose_device, move_model

        assert self._weights is not None
        with _timed(self._seconds, "to_gpu"):
            gc.collect()  # a restored engine that must not serve may still hold the GPU's memory
            model = move_model(self._weights.loaded(), choose_device(settings.device))
            self._weights = None
            if settings.draw_speed is not DrawSpeed.EXACT:
                self._code = CompiledCode(self._folder, kind_of(str(model.device)))
                self._code.take()
        return model


@dataclass(frozen=True)
class Begun:
    """What there is before the snapshot, and so again after each restore.

    Attributes:
        settings: of that day, without secrets.
        seconds: what it took; of interest only where no snapshot comes between.
        weights: what was read; without the model where `held` has it.
        held: the whole worker, where the GPU's memory is kept, too.
        code_kept: see `Started`.
    """

    settings: Settings
    seconds: float = 0.0
    weights: Weights = Weights()
    held: Held | None = None
    code_kept: bool = False


def begin(deployment: Deployment, settings: Settings) -> Begun:
    """The part of a start that a snapshot keeps; `settings` hold no secret."""
    begun = time.perf_counter()
    if deployment.snapshot is Snapshot.IMPORTS:
        with without_cuda():
            from sdxl_worker.loading.imports import import_libraries
            from sdxl_worker.loading.pipeline import load_model

            import_libraries()
            del load_model  # imported so that the restored process has it
        return Begun(settings)
    weights = read_weights(deployment, settings)
    if deployment.snapshot is not Snapshot.GPU:
        return Begun(settings, time.perf_counter() - begun, weights)
    started = Started(weights, deployment, settings, way=Snapshot.GPU.value, seconds={})
    asyncio.run(started.load())
    kept = Weights(manifest=weights.manifest, problem=weights.problem)
    held = hold(started.engine, settings)
    return Begun(settings, weights=kept, held=held, code_kept=started.code_kept)


def go_on(begun: Begun, deployment: Deployment, settings: Settings) -> Started:
    """The other part: the engine that was begun with if it is what it was; else one of the weights
    that were begun with, or of what the volume holds now."""
    if deployment.snapshot is not Snapshot.OFF:
        renew_randomness()
    seconds: dict[str, float] = {}
    way, fell_back = deployment.snapshot.value, None
    if deployment.snapshot is Snapshot.GPU:
        with _timed(seconds, "check"):
            fell_back = _problem(begun, deployment, settings)
        if fell_back is None and begun.held is not None:
            engine = begun.held.engine
            return Started(None, deployment, settings, way=way, seconds=seconds, held=engine)
        log.warning("gpu_snapshot_not_used", reason=fell_back)
        way = "volume"
    with _timed(seconds, "weights"):
        if without_secrets(settings) != begun.settings or begun.weights.model is None:
            weights = read_weights(deployment, settings)
        else:
            weights = still_current(begun.weights, deployment, settings)
    if deployment.snapshot is Snapshot.OFF:
        way = "volume"
        seconds["weights"] += begun.seconds
    return Started(weights, deployment, settings, way=way, seconds=seconds, fell_back=fell_back)


def _problem(begun: Begun, deployment: Deployment, settings: Settings) -> str | None:
    """Why the worker that a snapshot of the GPU kept must not serve; None: it may."""
    if begun.held is None:
        return "the worker was not ready when the snapshot was taken"
    folder = deployment.model_folder
    try:
        now = read_manifest(folder.parent, folder.name).files
    except WeightsError:
        return "the volume's weights cannot be read"
    if begun.weights.manifest is None or now != begun.weights.manifest.files:
        return "the volume holds other weights than when the snapshot was taken"
    return problem_of(begun.held, without_secrets(settings))


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = time.perf_counter() - begun
