"""A container's start, in the two halves that a memory snapshot cuts.

Duty: `read_weights` before the snapshot; `still_current` after it, since whatever was read before
may have changed: the volume can have been filled anew, or filled at last. Secrets are not read
here at all: the engine's settings are made after the snapshot.
Must not know: Modal, requests, GPUs. Imports torch only inside, where CUDA may not be asked yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_contract.errors import ModelLoadFailed
from sdxl_worker.deploying.settings import Deployment
from sdxl_worker.deploying.single_file import WeightsError
from sdxl_worker.deploying.volume import Manifest, read_manifest, verify
from sdxl_worker.loading.snapshot import without_cuda
from sdxl_worker.loading.weight_reader import start_reading
from sdxl_worker.settings import Dtype, Settings

if TYPE_CHECKING:
    from sdxl_worker.engine import Engine
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


def start_engine(weights: Weights, settings: Settings) -> Engine:
    """The engine that moves `weights` to the GPU when it loads."""
    from sdxl_worker.engine import Engine
    from sdxl_worker.loading.pipeline import choose_device, move_model

    return Engine(
        settings, load=lambda _: move_model(weights.loaded(), choose_device(settings.device))
    )
