"""How the model's parts are called: eagerly, from recordings, or compiled.

Duty: UNet, text encoders and VAE as functions of tensors; which speed draws a step, by rules that
know its shape alone, so that the same request is always drawn the same way; what was replayed,
recorded and made eagerly.
Must not know: requests, LoRAs, samplers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
import torch
from torch import Tensor

from sdxl_contract.result import DrawingReport
from sdxl_worker.drawing.controls import Residuals, called
from sdxl_worker.drawing.denoising import StepInputs
from sdxl_worker.drawing.latents import (
    scaled,
    tiled_where_large,
    unscaled,
    upcast_where_needed,
)
from sdxl_worker.drawing.references import Attached
from sdxl_worker.drawing.speeds import EXACTLY, FastUNet, Speeds, Without
from sdxl_worker.graphs.calls import Count, How, StaticCalls, Why
from sdxl_worker.out_of_memory import is_out_of_memory, let_go
from sdxl_worker.settings import DrawSpeed

log = structlog.get_logger()

UNET = "unet"
_FAST = {DrawSpeed.COMPILED: "unet_compiled", DrawSpeed.FP8: "unet_fp8"}
_WINDOW = 77
# Of guidance: with the prompt and without.
_SIDES = 2
# Of the prediction's own size; 8 bits are off by some hundredths, a wrong kernel by all of it.
_FAR = 0.5


class ModelCalls:
    """One pipeline's parts as functions. One caller at a time.

    Args:
        pipe: the pipeline.
        static: records and replays; of its own unless given, recording nothing.
        speeds: UNets that are faster than the exact one, to draw what they cover.
        native_side: px of the square that they cover.
        whole_pixels: of the largest picture that the VAE takes as a whole; tiles beyond.
    """

    def __init__(
        self,
        pipe: Any,
        static: StaticCalls | None = None,
        speeds: Speeds = EXACTLY,
        native_side: int = 0,
        whole_pixels: int = 2**62,
    ) -> None:
        self._pipe = pipe
        self.static = StaticCalls(None) if static is None else static
        self._fast = list(speeds.fast)
        self._works = False
        self._fast_decoder = speeds.decode
        self._decoder_works = False
        self._without = dict(speeds.without)
        self._whole_pixels = whole_pixels
        self._native = native_side // pipe.vae_scale_factor
        # Once: to walk through all of the UNet's modules takes milliseconds.
        self._attention = {
            f"{name}.processor": module
            for name, module in pipe.unet.named_modules()
            if hasattr(module, "get_processor")
        }
        self._own_processors = self._processors()
        self._beside: Attached | None = None
        self._unknown: Why | None = None
        self._speeds: Counter[str] = Counter()

    @property
    def speed(self) -> DrawSpeed:
        """What draws single pictures of the native size."""
        return self._fast[0].speed if self._fast else DrawSpeed.EXACT

    @property
    def without(self) -> dict[str, str]:
        """Speeds that the setting asks for and that do not draw, and why."""
        return {speed.value: why.value for speed, why in self._without.items()}

    def begin(self) -> None:
        """Before each request: see what is attached to the UNet now, and count from zero."""
        self.look()
        self._speeds.clear()

    def look(self, beside: Attached | None = None) -> None:
        """See what is attached to the UNet now; to be called wherever that changes.

        A recording holds the attention processors that it was made with, and no argument shows
        others than `beside`.
        """
        known = dict(self._own_processors)
        if beside is not None:
            known |= {name: id(one) for name, one in beside.processors.items()}
        self._beside = beside
        self._unknown = None if self._processors() == known else Why.ATTACHED

    def _processors(self) -> dict[str, int]:
        """Which attention processors the UNet has, as it names them in `attn_processors`."""
        return {name: id(module.get_processor()) for name, module in self._attention.items()}

    def unet(self, inputs: StepInputs, attached: Mapping[str, Any]) -> Tensor:
        """The UNet's prediction for one step; a `UNetCall`."""
        arguments = {
            "sample": inputs.sample,
            # What the UNet makes of it first. Samplers count in integers or fractions, and each
            # kind would be recorded, and compiled for minutes, by itself.
            "timestep": inputs.timestep.to(inputs.sample.device, torch.float32),
            "encoder_hidden_states": inputs.embeds,
            "timestep_cond": inputs.timestep_cond,
            "added_cond_kwargs": {"text_embeds": inputs.pooled, "time_ids": inputs.time_ids},
            **attached,
        }
        is_plain = not attached and self._beside is None and self._unknown is None
        while self._fast and is_plain and self._covers(inputs):
            fast = self._fast[0]
            found = self._try_fast(fast, arguments)
            if found is not None:
                self._speeds[fast.speed.value] += 1
                return found
        self._speeds[DrawSpeed.EXACT.value] += 1
        if (beside := self._beside) is None:
            return self._call(UNET, self._run_unet, arguments, bypass=self._unknown)

        def run(tokens: list[Tensor], scales: tuple[float, ...], **arguments: Any) -> Tensor:
            beside.tell(tokens, scales)
            return self._run_unet(**arguments)

        arguments |= beside.told()
        return self._call(UNET, run, arguments, of=beside.adapters, bypass=self._unknown)

    def control(self, network: Any, arguments: dict[str, Any]) -> Residuals:
        """What a control network gives the UNet at one step; a `ControlCall`."""

        def run(**arguments: Any) -> Residuals:
            return called(network, arguments)

        found: Residuals = self.static.call("control", run, arguments, of=(network,))
        return found

    def encode_text(self, number: int, ids: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
        """The last hidden state but one, and but `skip` more, (n, 77, C) and the first output of
        encoder 1 or 2.
        """
        model = self._pipe.text_encoder if number == 1 else self._pipe.text_encoder_2

        def run(ids: Tensor) -> tuple[Tensor, Tensor]:
            output = model(ids, output_hidden_states=True)
            return output.hidden_states[-2 - skip], output[0]

        # Such as words of a textual inversion, put in by a hook.
        hooked = bool(model.get_input_embeddings()._forward_hooks)
        # Recordings are of what nearly all requests ask for.
        bypass = Why.ATTACHED if hooked else Why.ARGUMENTS if skip else None
        found: tuple[Tensor, Tensor] = self.static.call(
            f"text_encoder_{number}", run, {"ids": ids}, bypass=bypass
        )
        return found

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (1, 3, H, W) in [-1, 1] of latents (1, C, h, w)."""
        vae = self._pipe.vae
        if self._fast_decoder is not None and self._drawn_fast(latents):
            found = self._try_fast_decoder(self._fast_decoder, unscaled(latents, vae))
            if found is not None:
                return found
        # Its kernels are long: a graph saves nothing (measured), and would hold gigabytes.
        size = latents.shape[2] * latents.shape[3] * self._pipe.vae_scale_factor**2
        with upcast_where_needed(vae), tiled_where_large(vae, size, self._whole_pixels):
            pixels: Tensor = self.static.run(self._run_decoder, {"z": unscaled(latents, vae)})
        return pixels

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (1, C, h, w), in the UNet's scale and dtype, of pixels (1, 3, H, W) in [-1, 1].

        The mean of what the VAE holds possible: drawing from it would use up the seed's noise.
        """
        vae = self._pipe.vae
        size = pixels.shape[2] * pixels.shape[3]
        with upcast_where_needed(vae), tiled_where_large(vae, size, self._whole_pixels):
            ready = pixels.to(vae.device, vae.dtype)
            found = self.static.run(self._run_encoder, {"x": ready})
        latents: Tensor = scaled(found, vae).to(self._pipe.unet.dtype)
        return latents

    def report(self, counts: Counter[Count]) -> DrawingReport:
        """What a result says of the steps since `begin`."""
        by_how: Counter[How] = Counter()
        reasons: Counter[str] = Counter()
        for (name, how, why), count in counts.items():
            if name != UNET and name not in _FAST.values():
                continue
            by_how[how] += count
            if why is not None:
                reasons[why.value] += count
        return DrawingReport(
            speed="+".join(sorted(self._speeds)) or DrawSpeed.EXACT.value,
            steps_replayed=by_how[How.REPLAYED],
            steps_captured=by_how[How.RECORDED],
            steps_eager=by_how[How.EAGER],
            eager_because=dict(reasons),
            speeds_unavailable=self.without,
        )

    def _covers(self, inputs: StepInputs) -> bool:
        """Whether a fast UNet draws a step: one picture with guidance, native size, one window of
        text.

        By the shape alone: what was compiled until now, or is recorded, must not show in pictures.
        Not without guidance: that would be compiled for minutes more at each start, for the half
        of a step's gain.
        """
        return (
            inputs.sample.shape[0] == _SIDES
            and tuple(inputs.sample.shape[2:]) == (self._native, self._native)
            and inputs.embeds.shape[1] == _WINDOW
            and inputs.timestep_cond is None
        )

    def _try_fast(self, fast: FastUNet, arguments: dict[str, Any]) -> Tensor | None:
        """Its prediction; None where it cannot draw, in which case it is tried never again."""

        def run(**arguments: Any) -> Tensor:
            found: Tensor = fast.call(**arguments, return_dict=False)[0]
            return found

        try:
            found = self._call(_FAST[fast.speed], run, arguments, bypass=self._unknown)
        except Exception as error:
            if self._works:
                raise
            log.warning("unet_not_compiled", speed=fast.speed.value, error=repr(error)[:500])
            short = is_out_of_memory(error)
            let_go(error)
            self._give_up(fast, Without.MEMORY if short else Without.COMPILING)
            return None
        if not self._works:
            exact = self.static.run(self._run_unet, arguments)
            if bool(torch.isfinite(exact).all()):
                if not _alike(found, exact):
                    log.warning("unet_draws_wrongly", speed=fast.speed.value)
                    self._give_up(fast, Without.WRONG)
                    return None
                self._works = True
        return found

    def _drawn_fast(self, latents: Tensor) -> bool:
        """Whether no step of this request was drawn exactly: what was is decoded so, too."""
        return (
            bool(self._speeds)
            and self._speeds[DrawSpeed.EXACT.value] == 0
            and latents.shape[0] == 1
            and tuple(latents.shape[2:]) == (self._native, self._native)
            and not self._pipe.vae.use_tiling
        )

    def _try_fast_decoder(
        self, decoder: Callable[[Tensor], Tensor], latents: Tensor
    ) -> Tensor | None:
        """Its pixels; None where it cannot decode, in which case it is tried never again."""

        def run(z: Tensor) -> Tensor:
            return decoder(z)

        try:
            found: Tensor = self.static.run(run, {"z": latents})
            if not self._decoder_works:
                exact = self.static.run(self._run_decoder, {"z": latents})
                if bool(torch.isfinite(exact).all()):
                    if not _alike(found, exact):
                        raise RuntimeError("its pixels are other ones")
                    self._decoder_works = True
        except Exception as error:
            if self._decoder_works:
                raise
            log.warning("decoder_not_compiled", error=repr(error)[:500])
            let_go(error)
            self._fast_decoder = None
            return None
        return found

    def _give_up(self, fast: FastUNet, why: Without) -> None:
        self._fast.remove(fast)
        self._without[fast.speed] = why
        if why is Without.WRONG:
            # A recording of it must not keep what it holds.
            self.static.drop_all()
        fast.give_up()

    def _call(
        self,
        name: str,
        function: Callable[..., Tensor],
        arguments: dict[str, Any],
        *,
        of: Sequence[object] = (),
        bypass: Why | None,
    ) -> Tensor:
        found: Tensor = self.static.call(name, function, arguments, of=of, bypass=bypass)
        return found

    def _run_unet(self, **arguments: Any) -> Tensor:
        found: Tensor = self._pipe.unet(**arguments, return_dict=False)[0]
        return found

    def _run_decoder(self, z: Tensor) -> Tensor:
        found: Tensor = self._pipe.vae.decode(z, return_dict=False)[0]
        return found

    def _run_encoder(self, x: Tensor) -> Tensor:
        found: Tensor = self._pipe.vae.encode(x).latent_dist.mode()
        return found


def _alike(found: Tensor, exact: Tensor) -> bool:
    """Whether a prediction is the same one up to rounding: not whether it is as good."""
    error = (found.float() - exact.float()).norm()
    # Not `>`: what is no number compares as false.
    return bool(error <= _FAR * exact.float().norm())
