"""From a request's picture URLs to the canvas that it draws over.

Duty: fetch under the guard and within the bytes that LoRAs are fetched under, decode in threads of
its own. Nothing is kept: a picture is its owner's, and one request's.
Must not know: the model's state.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from sdxl_contract.drawing.edges import canny
from sdxl_contract.errors import ImageDownloadFailed, LoraDownloadFailed
from sdxl_contract.limits import ModelLimits
from sdxl_contract.pictures import PictureRef
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import Phase
from sdxl_worker.fetching.budget import Share
from sdxl_worker.fetching.download import Fetcher
from sdxl_worker.pictures.canvas import Canvas, make_canvas
from sdxl_worker.pictures.decoding import as_mask, decode_picture, opaque
from sdxl_worker.run import Run

# Each may hold a few times a picture's pixels for a moment.
_DECODING_THREADS = 2


class PictureSource:
    """Gets canvases ready. Lives on one event loop."""

    def __init__(self, fetcher: Fetcher, limits: ModelLimits) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._decoding = ThreadPoolExecutor(_DECODING_THREADS, thread_name_prefix="decode")

    async def get(self, run: Run, share: Share) -> Canvas | None:
        """The canvas of `run`'s request; None if it draws from nothing but words.

        Raises:
            ImageDownloadFailed, ImageLoadFailed, Overloaded: as the contract says.
        """
        request = run.request
        if not request.pictures():
            return None
        with run.phase(Phase.FETCH_IMAGES):
            files = [
                await self._download(field, picture, share) for field, picture in request.pictures()
            ]
            reading = self._decoding.submit(_decoded, request, self._limits, files)
            canvas, beside = await asyncio.wrap_future(reading)
        held = len(request.controls)
        run.control_pictures, run.reference_pictures = beside[:held], beside[held:]
        share.take(canvas.nbytes if canvas else 0)
        share.take(sum(3 * one.width * one.height for one in beside))
        share.give_back(sum(map(len, files)))
        return canvas

    async def _download(self, field: str, picture: PictureRef, share: Share) -> bytearray:
        try:
            fetched = await self._fetcher.download(
                picture.url,
                sha256=picture.sha256,
                share=share,
                max_bytes=self._limits.image_max_bytes,
            )
        except LoraDownloadFailed as error:
            message = error.message
            for word, ours in (("the LoRA's", f"{field}'s"), ("the LoRA", field)):
                message = message.replace(word, ours)
            raise ImageDownloadFailed(
                message, details={**(error.details or {}), "field": field}, status=error.status
            ) from error
        assert fetched is not None  # only a file that is held already is left out
        return bytearray(fetched.data)


def _decoded(
    request: GenerateRequest, limits: ModelLimits, files: list[bytearray]
) -> tuple[Canvas | None, list[Image.Image]]:
    """The canvas, and the pictures of the controls and of the references."""
    count = len(request.controls) + len(request.references)
    fields = [field for field, _ in request.pictures()]
    beside = []
    for field, data in list(zip(fields, files, strict=True))[len(files) - count :]:
        picture = opaque(decode_picture(data, field, limits))
        # No larger than any drawing: nothing is looked at more closely.
        picture.thumbnail((limits.hires_max_side, limits.hires_max_side), Image.Resampling.LANCZOS)
        beside.append(picture)
    for number, control in enumerate(request.controls):
        if control.canny is not None:
            low, high = control.canny.low, control.canny.high
            beside[number] = canny(beside[number], low, high)
    return _canvas(request, limits, files) if request.image else None, beside


def _canvas(request: GenerateRequest, limits: ModelLimits, files: list[bytearray]) -> Canvas:
    source = opaque(decode_picture(files[0], "image", limits))
    mask = None
    if request.mask is not None:
        decoded = decode_picture(files[1], "mask", limits)
        mask = as_mask(decoded, request.mask.channel, invert=request.mask.invert)
    return make_canvas(request, limits, source, mask)
