"""A container's start, in the two halves that a memory snapshot cuts.

Duty: `read_weights` before the snapshot; `still_current` after it, since whatever was read before
may have changed: the volume can have been filled anew, or filled at last. Secrets are not read
here at all: the engine's settings are made after the snapshot.
Must not know: Modal, requests, GPUs. Imports torch only inside, where CUDA may not be asked yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.result import StartReport
from sdxl_worker.deploying.compiled_code import CompiledCode, kind_of
from sdxl_worker.deploying.settings import Deployment
from sdxl_worker.deploying.single_file import WeightsError
from sdxl_worker.deploying.volume import Manifest, read_manifest, verify
from sdxl_worker.loading.snapshot import without_cuda
from sdxl_worker.loading.weight_reader import start_reading
from sdxl_worker.settings import DrawSpeed, Dtype, Settings

if TYPE_CHECKING:
    from sdxl_worker.loading.pipeline import LoadedModel


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
        way: see `StartReport`.
        seconds: of what was done already.

    Attributes:
        code_kept: whether the volume of compiled code has something new, once `load` is through.
    """

    def __init__(
        self,
        weights: Weights,
        deployment: Deployment,
        settings: Settings,
        *,
        way: str,
        seconds: dict[str, float],
    ) -> None:
        from sdxl_worker.engine import Engine

        self._weights = weights
        self._folder = Path(deployment.code_mount)
        self._settings = settings
        self._way = way
        self._seconds = seconds
        self._code: CompiledCode | None = None
        self.code_kept = False
        self.engine = Engine(settings, load=self._move)

    async def load(self) -> None:
        """The engine's own, timed; then what was compiled is kept for other containers."""
        with _timed(self._seconds, "warm_up"):
            await self.engine.load()
        self._seconds["warm_up"] -= self._seconds.get("to_gpu", 0.0)
        if self._code is not None and self.engine.health().error is None:
            with _timed(self._seconds, "keep_code"):
                self.code_kept = await asyncio.to_thread(self._code.keep)
        rounded = {name: round(seconds, 3) for name, seconds in self._seconds.items()}
        self.engine.start = StartReport(way=self._way, seconds=rounded)

    def _move(self, settings: Settings) -> LoadedModel:
        from sdxl_worker.loading.pipeline import choose_device, move_model

        with _timed(self._seconds, "to_gpu"):
            model = move_model(self._weights.loaded(), choose_device(settings.device))
            del self._weights
            if settings.draw_speed is not DrawSpeed.EXACT:
                self._code = CompiledCode(self._folder, kind_of(str(model.device)))
                self._code.take()
        return model


@dataclass(frozen=True)
class Begun:
    """What there is before the snapshot, and so again after each restore.

    Attributes:
        seconds: what it took; of interest only where no snapshot comes between.
    """

    weights: Weights
    seconds: float


def begin(deployment: Deployment, settings: Settings) -> Begun:
    """The part of a start that a snapshot keeps; `settings` hold no secret."""
    begun = time.perf_counter()
    return Begun(read_weights(deployment, settings), time.perf_counter() - begun)


def go_on(begun: Begun, deployment: Deployment, settings: Settings) -> Started:
    """The other part: the engine of what was begun with, or of what the volume holds now."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "weights"):
        weights = still_current(begun.weights, deployment, settings)
    if deployment.memory_snapshot:
        return Started(weights, deployment, settings, way="weights", seconds=seconds)
    seconds["weights"] += begun.seconds
    return Started(weights, deployment, settings, way="volume", seconds=seconds)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = time.perf_counter() - begun
