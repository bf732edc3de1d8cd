"""One request's pictures: text → latents → pixels, on the model as it stands.

Duty: text, denoising and decoding in phases that can be timed, stopped at every step and previewed.
Must not know: LoRAs, HTTP, queues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdxl_contract.drawing.hires import LANCZOS, LATENT
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.limits import ControlKind
from sdxl_contract.prompts.words import Timeline
from sdxl_contract.result import Phase
from sdxl_worker.auxiliary.adapters import ADAPTER, ENCODER, Adapter
from sdxl_worker.auxiliary.provided import CONTROL, UPSCALER
from sdxl_worker.auxiliary.shelf import Shelf
from sdxl_worker.auxiliary.upscaler_networks import Upscaler
from sdxl_worker.auxiliary.upscaling import enlarge
from sdxl_worker.drawing.beginnings import Beginning, Ground, from_ground, from_noise
from sdxl_worker.drawing.controls import Attachments, Held, as_map, as_pixels
from sdxl_worker.drawing.denoising import Denoising
from sdxl_worker.drawing.latents import from_image, to_image
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.drawing.passes import Pass, Progress, first_pass, second_pass
from sdxl_worker.drawing.previews import Previews
from sdxl_worker.drawing.prompts import Conditioning, conditioning_at_calls, encode_words
from sdxl_worker.drawing.references import Shown, attached, look
from sdxl_worker.drawing.schedulers import build_scheduler, scheduler_eta
from sdxl_worker.graphs.calls import Count
from sdxl_worker.graphs.cuda import Pace
from sdxl_worker.loading.pipeline import LoadedModel
from sdxl_worker.pictures.canvas import Canvas
from sdxl_worker.run import Run

SEED_RANGE = 2**32
_PREVIEW_EVERY = 4


@dataclass(frozen=True)
class Drawn:
    """One picture and the seed that made it; the first pass's size where there was a second."""

    image: Image.Image
    seed: int
    first_size: tuple[int, int] | None = None


def image_seeds(seed: int, count: int) -> list[int]:
    """The seed of each of `count` pictures: consecutive, wrapping at 2^32."""
    return [(seed + number) % SEED_RANGE for number in range(count)]


def _in_use(run: Run) -> set[tuple[str, str]]:
    """Networks that a request's passes need, by kind and name."""
    request = run.request
    return {
        (ENCODER, ENCODER),
        *((CONTROL, one.model) for one in request.controls),
        *((ADAPTER, one.adapter) for one in request.references),
    }


class Drawer:
    """Draws on one loaded model. One caller at a time."""

    def __init__(
        self,
        model: LoadedModel,
        images_per_batch: int = 1,
        calls: ModelCalls | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self._model = model
        self._own_scheduler = model.pipe.scheduler
        self._batch = images_per_batch
        self._calls = calls or ModelCalls(model.pipe)
        self._shelf = shelf or Shelf((), 0)
        self._pace = Pace(model.device)
        self._counts: Counter[Count] = Counter()
        self._previews = Previews(model.pipe.vae)

    @property
    def own_scheduler(self) -> Any:
        """The scheduler that the model's folder states."""
        return self._own_scheduler

    @property
    def counts(self) -> Counter[Count]:
        """(part, how, why) → calls of the last request that was drawn, whole or not."""
        return self._counts

    @property
    def speed(self) -> str:
        """What draws single pictures of the native size."""
        return self._calls.speed.value

    @property
    def speeds_unavailable(self) -> dict[str, str]:
        """Speeds that the setting asks for and that do not draw, and why."""
        return self._calls.without

    @property
    def graph_bytes(self) -> int:
        """Memory of the recorded calls."""
        return self._calls.static.nbytes

    def drop_recordings(self) -> None:
        """Give up what only makes drawing faster: when memory is short."""
        self._calls.static.drop_all()

    @torch.no_grad()
    def draw(self, run: Run) -> list[Drawn]:
        """The pictures that `run` asks for; stops wherever the run must.

        Raises:
            GenerationFailed: the latents or the picture are not finite.
            InvalidPrompt: embeddings make the prompts too long.
        """
        self._calls.begin()
        try:
            return self._draw(run)
        finally:
            self._counts = self._calls.static.take_counts()
            run.drawing = self._calls.report(self._counts)

    def _draw(self, run: Run) -> list[Drawn]:
        request = run.request
        seeds = image_seeds(run.seed, request.num_images)
        if request.upscale is not None:
            assert run.canvas is not None
            source, upscale = run.canvas.pixels, request.upscale
            with run.phase(Phase.UPSCALE):
                image = self._upscaled(run, source, upscale.size(source.size), upscale.upscaler)
            return [Drawn(image, run.seed)]
        with run.phase(Phase.TEXT_ENCODE):
            passes = self._passes(run)
        run.check()
        ground, shown = None, []
        if run.canvas is not None or run.reference_pictures:
            with run.phase(Phase.ENCODE_IMAGE):
                ground = self._ground(run.canvas) if run.canvas else None
                shown = self._shown(run)
            run.check()
        progress = Progress(run)
        drawn: list[Drawn] = []
        for start in range(0, len(seeds), self._batch):
            batch = seeds[start : start + self._batch]
            with run.phase(Phase.DENOISE):
                latents = self._denoise(run, passes[0], batch, ground, shown, progress)
            run.check()
            # One by one: what follows takes most of the memory of all that is done here.
            for number, seed in enumerate(batch):
                one = latents[number : number + 1]
                for further in passes[1:]:
                    with run.phase(Phase.UPSCALE):
                        larger = Ground(self._enlarged(run, one, further.size))
                    run.check()
                    with run.phase(Phase.DENOISE):
                        one = self._denoise(run, further, [seed], larger, shown, progress)
                    run.check()
                with run.phase(Phase.DECODE):
                    image = self._decode(one)
                    image = run.canvas.finished(image) if run.canvas else image
                drawn.append(Drawn(image, seed, passes[0].size if passes[1:] else None))
            run.check()
        return drawn

    def _passes(self, run: Run) -> list[Pass]:
        """What is drawn one after the other, each with the text encoded."""
        request, limits = run.request, self._model.limits
        timelines = request.timelines()
        told = self._told(run, timelines[0])
        first = first_pass(request, run.size(limits), told)
        hires = request.hires
        if hires is None:
            return [first]
        again = [side.texts for side in timelines[1]]
        if again == [side.texts for side in timelines[0]] and len(set(map(id, told))) == 1:
            told = told[:1] * hires.drawn_steps(request.steps)
        else:
            told = self._told(run, timelines[1])
        return [first, second_pass(request, hires, first, limits.multiple_of, told)]

    def _told(self, run: Run, sides: tuple[Timeline, Timeline]) -> list[Conditioning]:
        """The conditioning of each step.

        Raises:
            InvalidPrompt: the run's embeddings make its prompts too long.
        """
        skip, encode = run.request.clip_skip or 0, self._calls.encode_text
        return encode_words(self._model.pipe, sides, encode, skip, run.embeddings)

    def _enlarged(self, run: Run, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """One picture's latents (1, C, h, w) for a pass of `size` px.

        Raises:
            GenerationFailed: they are not finite.
        """
        assert run.request.hires is not None
        if run.request.hires.upscaler == LATENT:
            factor = self._model.pipe.vae_scale_factor
            return torch.nn.functional.interpolate(
                latents, (size[1] // factor, size[0] // factor), mode="bilinear", antialias=False
            )
        # As bytes in between, like a picture that was saved and drawn over.
        image = self._decode(latents)
        return self._encode(self._upscaled(run, image, size, run.request.hires.upscaler))

    def _upscaled(
        self, run: Run, image: Image.Image, size: tuple[int, int], name: str
    ) -> Image.Image:
        """`image` at `size`, by Lanczos or by one of the operator's upscalers."""
        network = None if name == LANCZOS else self._network(UPSCALER, name, ())
        return enlarge(image, size, cast("Upscaler | None", network), self._model.device, run.check)

    def _encode(self, image: Image.Image) -> Tensor:
        """Latents (1, C, h, w), in the UNet's scale, of an RGB image.

        Raises:
            GenerationFailed: they are not finite.
        """
        latents = self._calls.encode(from_image(image))
        if not bool(torch.isfinite(latents).all()):
            raise GenerationFailed("the source's latents are not finite: the VAE overflowed")
        return latents

    def _ground(self, canvas: Canvas) -> Ground:
        """A canvas in the UNet's scale.

        Raises:
            GenerationFailed: its latents are not finite.
        """
        latents = self._encode(canvas.pixels)
        if canvas.mask is None:
            return Ground(latents)
        factor = self._model.pipe.vae_scale_factor
        array: np.ndarray[Any, np.dtype[np.uint8]] = np.array(canvas.mask)
        mask = torch.from_numpy(array)[None, None].float() / 255
        # Averaged, so that the greys of an edge or a soft mask are kept.
        mask = torch.nn.functional.avg_pool2d(mask, factor)
        return Ground(latents, mask.to(latents), canvas.fill, canvas.soft)

    def _denoise(
        self,
        run: Run,
        one: Pass,
        seeds: list[int],
        ground: Ground | None,
        shown: Sequence[Shown],
        progress: Progress,
    ) -> Tensor:
        """Latents (n, C, H/8, W/8) of n pictures, each from a CPU generator of its own."""
        model, count = self._model, len(seeds)
        scheduler = build_scheduler(one.scheduler, self._own_scheduler, one.steps)
        scheduler.set_timesteps(one.steps, device=model.device)
        generators = [
            # On the CPU whatever the device: the picture must not depend on the GPU's state.
            torch.Generator("cpu").manual_seed(seed)
            for seed in seeds
        ]
        begin = self._begin(run, one, ground, generators, scheduler)
        calls = len(scheduler.timesteps) - begin.first

        def step_done(index: int, latents: Tensor) -> None:
            self._pace.mark()
            # Samplers of two stages call the UNet about twice for each step.
            step = -(-(index + 1) * one.drawn // calls)
            due = index % _PREVIEW_EVERY == _PREVIEW_EVERY - 1 and index + 1 < calls
            progress.step(one, step, count, (lambda: self.preview(latents)) if due else None)

        denoising = Denoising(
            predict=self._calls.unet,
            scheduler=scheduler,
            latents=begin.latents,
            first=begin.first,
            blend=begin.blend,
            conditioning=one.conditionings[0],
            conditioning_at=conditioning_at_calls(one.conditionings, int(scheduler.order)),
            size=one.size,
            guidance=one.cfg,
            rescale=run.request.guidance_rescale,
            eta=scheduler_eta(one.scheduler),
            generators=generators,
            attach=self._attachments(run, one.size, calls) if run.control_pictures else None,
            on_step=step_done,
            timestep_cond=self._guidance_embedding(one.cfg, count),
        )
        with attached(denoising, shown, calls, self._model.pipe.unet, self._calls.look) as whole:
            latents = whole.run()
        if not bool(torch.isfinite(latents).all()):
            raise GenerationFailed("the latents are not finite: try lower LoRA scales")
        progress.passed(one, count)
        return latents

    def _network(self, kind: str, name: str, keep: Collection[tuple[str, str]]) -> Any:
        """One of the operator's; where it has no room, once more without recordings."""
        wanted = {"kind": kind, "name": name, "keep": keep}
        return self._calls.static.run(self._shelf.get, wanted)

    def _attachments(self, run: Run, size: tuple[int, int], calls: int) -> Attachments:
        """The request's controls for a pass of `size` px and so many calls of the UNet."""
        controls = run.request.controls
        held = []
        for control, picture in zip(controls, run.control_pictures, strict=True):
            network = self._network(CONTROL, control.model, _in_use(run))
            about = self._shelf.item(CONTROL, control.model).about
            prepared = as_map if about.kind is ControlKind.T2I_ADAPTER else as_pixels
            held.append(
                Held(
                    kind=about.kind,
                    network=network,
                    pixels=prepared(picture, size, network),
                    scale=control.scale,
                    start=control.start,
                    end=control.end,
                    mode=about.types.index(control.type) if control.type else 0,
                )
            )
        return Attachments(held, calls, self._calls.control)

    def _shown(self, run: Run) -> list[Shown]:
        """The request's references, as the image encoder sees them."""
        shown = []
        for reference, picture in zip(run.request.references, run.reference_pictures, strict=True):
            encoder, network = (
                self._network(kind, name, _in_use(run))
                for kind, name in ((ENCODER, ENCODER), (ADAPTER, reference.adapter))
            )
            adapter = cast("Adapter", network)
            seen, unseen = look(picture, encoder, adapter)
            shown.append(
                Shown(adapter, seen, unseen, reference.scale, reference.start, reference.end)
            )
        return shown

    def _begin(
        self,
        run: Run,
        one: Pass,
        ground: Ground | None,
        generators: list[torch.Generator],
        scheduler: Any,
    ) -> Beginning:
        """The first latents (n, C, h, w)."""
        pipe = self._model.pipe
        if ground is not None:
            return from_ground(
                ground,
                generators,
                scheduler,
                one.steps,
                one.drawn,
                is_whole=run.request.drawing_strength() == 1.0,
            )
        factor = pipe.vae_scale_factor
        shape = (int(pipe.unet.config.in_channels), one.size[1] // factor, one.size[0] // factor)
        return from_noise(generators, shape, one.conditionings[0].prompt, scheduler)

    def _guidance_embedding(self, guidance: float, count: int) -> Tensor | None:
        """The guidance embedding of a UNet distilled for it; None for any other UNet."""
        pipe = self._model.pipe
        width = pipe.unet.config.time_cond_proj_dim
        if width is None:
            return None
        scales = torch.tensor(guidance - 1).repeat(count)
        embedding: Tensor = pipe.get_guidance_scale_embedding(scales, embedding_dim=width)
        return embedding.to(self._model.device, pipe.unet.dtype)

    def _decode(self, latents: Tensor) -> Image.Image:
        """RGB picture of `latents` (1, C, h, w)."""
        pixels = self._calls.decode(latents)
        if not bool(torch.isfinite(pixels).all()):
            raise GenerationFailed("the image is not finite: the VAE overflowed")
        return to_image(pixels[0])

    def preview(self, latents: Tensor) -> str:
        """A small JPEG of unfinished `latents` (1, C, h, w), base64."""
        return self._previews.jpeg(latents)
