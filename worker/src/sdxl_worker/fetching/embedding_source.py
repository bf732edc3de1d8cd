"""From a request's embedding URLs to vectors that its words are read with: textual inversion.

Duty: fetch under the guard and within the bytes that LoRAs are fetched under, and read the file
against the loaded text encoders. Nothing is kept: such a file is small.
Must not know: prompts.
"""

from __future__ import annotations

import asyncio

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sdxl_contract.errors import LoraDownloadFailed
from sdxl_contract.limits import EMBEDDING_MAX_BYTES
from sdxl_contract.prompts.embedding_file import (
    EMBEDDING_TENSORS,
    count_vectors,
    wrong_embedding,
)
from sdxl_contract.result import Phase
from sdxl_worker.embeddings import Embedding
from sdxl_worker.fetching.budget import Share
from sdxl_worker.fetching.download import Fetcher
from sdxl_worker.run import Run


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
    count_vectors(data, widths, field)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise wrong_embedding(
            field, "the file is not safetensors, or not whole", "not_safetensors"
        ) from error
    first, second = (tensors[name].float() for name in EMBEDDING_TENSORS)
    for name, vectors in zip(EMBEDDING_TENSORS, (first, second), strict=True):
        if not bool(torch.isfinite(vectors).all()):
            raise wrong_embedding(field, f"{name} holds numbers that are not finite", "dtype")
    return first, second
