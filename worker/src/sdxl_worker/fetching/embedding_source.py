"""From a request's embedding URLs to vectors that its words are read with: textual inversion.

Duty: fetch under the guard and within the bytes that LoRAs are fetched under, and read the file
against the loaded text encoders. Nothing is kept: such a file is small.
Must not know: prompts.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sdxl_contract.errors import LoraDownloadFailed, LoraLoadFailed
from sdxl_contract.limits import EMBEDDING_MAX_BYTES, EMBEDDING_MAX_VECTORS
from sdxl_contract.result import Phase
from sdxl_worker.embeddings import Embedding
from sdxl_worker.fetching.budget import Share
from sdxl_worker.fetching.download import Fetcher
from sdxl_worker.run import Run

# What a file calls the vectors of each text encoder.
_NAMES = ("clip_l", "clip_g")


class EmbeddingSource:
    """Gets embeddings ready. Lives on one event loop.

    Args:
        widths: of both text encoders' token embeddings.
    """

    def __init__(self, fetcher: Fetcher, widths: tuple[int, int]) -> None:
        self._fetcher = fetcher
        self._widths = widths

    async def get_all(self, run: Run, share: Share) -> list[Embedding]:
        """The embeddings of `run`'s request, in its order.

        Raises:
            LoraDownloadFailed, LoraLoadFailed, Overloaded: as the contract says; the message and
                `details` name the field.
        """
        found: list[Embedding] = []
        for number, reference in enumerate(run.request.embeddings):
            field = f"embeddings[{number}]"
            with run.phase(Phase.DOWNLOAD):
                data, sha256 = await self._download(field, reference.url, reference.sha256, share)
            vectors = await asyncio.to_thread(read_embedding, data, self._widths, field)
            share.give_back(len(data))
            found.append(Embedding(reference.token, vectors, sha256))
        return found

    async def _download(
        self, field: str, url: str, sha256: str | None, share: Share
    ) -> tuple[bytes, str]:
        try:
            fetched = await self._fetcher.download(
                url, sha256=sha256, share=share, max_bytes=EMBEDDING_MAX_BYTES
            )
        except LoraDownloadFailed as error:
            message = error.message.replace("the LoRA", field)
            raise LoraDownloadFailed(
                message if field in message else f"{field}: {message}",
                details={**(error.details or {}), "field": field},
                status=error.status,
            ) from error
        assert fetched is not None  # only a file that is held already is left out
        return bytes(fetched.data), fetched.sha256


def read_embedding(data: bytes, widths: tuple[int, int], field: str) -> tuple[Tensor, Tensor]:
    """Vectors (n, width) in float32 for each text encoder.

    Raises:
        LoraLoadFailed: it is no embedding for these encoders; the message names `field`.
    """

    def wrong(why: str, reason: str, **more: Any) -> LoraLoadFailed:
        return LoraLoadFailed(f"{field}: {why}", details={"field": field, "reason": reason, **more})

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise wrong("the file is not safetensors, or not whole", "not_safetensors") from error
    if set(tensors) != set(_NAMES):
        raise wrong(
            f"an SDXL embedding's file has {_NAMES[0]} and {_NAMES[1]} and nothing else; this one "
            f"has {len(tensors)} tensors of other names or lacks one of them",
            "unsupported_kind",
        )
    found = []
    for name, width in zip(_NAMES, widths, strict=True):
        tensor = tensors[name]
        if not tensor.is_floating_point():
            raise wrong(f"{name} must be of floating-point numbers", "dtype")
        if tensor.ndim != 2 or tensor.shape[1] != width:
            shape = "x".join(map(str, tensor.shape))
            raise wrong(f"{name} is {shape}: the model wants n x {width}", "misfit")
        if not 1 <= len(tensor) <= EMBEDDING_MAX_VECTORS:
            raise wrong(
                f"{name} has {len(tensor)} vectors: from 1 to {EMBEDDING_MAX_VECTORS} are read",
                "misfit",
            )
        vectors = tensor.float()
        if not bool(torch.isfinite(vectors).all()):
            raise wrong(f"{name} holds numbers that are not finite", "dtype")
        found.append(vectors)
    if len(found[0]) != len(found[1]):
        raise wrong("clip_l and clip_g have different numbers of vectors", "misfit")
    return found[0], found[1]
