"""Which UNet draws: what the setting asks for, what the device can do, and what takes its place.

Duty: the setting `DRAW_SPEED` → UNets that are tried in order before the exact one, and why one
that is wanted is not among them; the copy of the weights in 8 bit, where one of them needs it.
Must not know: requests, samplers, how calls are recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
import torch
from torch import Tensor

from sdxl_worker.fp8.numbers import multiplies_by_rows
from sdxl_worker.fp8.unet import Twin, copy_bytes, shapes, twin_of
from sdxl_worker.fp8.weights import Fp8Weights
from sdxl_worker.lora import LoraPatcher, ModelTargets
from sdxl_worker.lora.grouped import Recorder
from sdxl_worker.lora.reports import nothing
from sdxl_worker.out_of_memory import is_out_of_memory, let_go
from sdxl_worker.settings import DrawSpeed

log = structlog.get_logger()
# Ada, the first with products of 8 bit.
_CAPABILITY = (8, 9)


class Without(StrEnum):
    """Why a speed that is wanted does not draw."""

    NO_GPU = "no_gpu"
    CARD = "card"
    PRECISION = "precision"
    MEMORY = "memory"
    CHECK = "check_failed"
    COMPILING = "not_compiled"
    WRONG = "wrong"


@dataclass(frozen=True)
class FastUNet:
    """A UNet that draws single pictures of the native size sooner than the exact one.

    Attributes:
        call: as the UNet itself is called.
        give_up: called once if it turns out that it cannot draw.
    """

    speed: DrawSpeed
    call: Callable[..., Any]
    give_up: Callable[[], None] = nothing


@dataclass(frozen=True)
class Speeds:
    """What draws.

    Attributes:
        fast: tried in this order; the first that works draws what all of them cover.
        without: speeds that the setting asks for and that do not draw, and why.
        decode: the VAE's decoder for what they drew, (1, C, h, w) → (1, 3, H, W); None: its own.
    """

    fast: tuple[FastUNet, ...] = ()
    without: tuple[tuple[DrawSpeed, Without], ...] = ()
    decode: Callable[[Tensor], Tensor] | None = None


EXACTLY = Speeds()


def why_no_fp8(device: torch.device, dtype: torch.dtype) -> Without | None:
    """Why a model of this precision on this device cannot draw in 8 bit, before it is tried."""
    if device.type != "cuda":
        return Without.NO_GPU
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return Without.CARD
    # Products by rows give no other 16 bits.
    return None if dtype is torch.bfloat16 else Without.PRECISION


def fp8_bytes(wanted: DrawSpeed, unet: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Memory of the live and the pristine copy in 8 bit; 0 if there are to be none."""
    if wanted is not DrawSpeed.FP8 or why_no_fp8(device, dtype) is not None:
        return 0
    return 2 * copy_bytes(unet)


def choose(
    wanted: DrawSpeed,
    pipe: Any,
    targets: ModelTargets,
    patcher: LoraPatcher,
    *,
    dtype: torch.dtype,
    room: bool,
    recorder: Recorder | None,
    watch: Callable[[Any], None] = nothing,
) -> Speeds:
    """The UNets that draw; `patcher` has the weights where they stay.

    Args:
        room: whether the memory plan has any for the copies in 8 bit.
        watch: given a second UNet as soon as there is one, and None when it is given up.
    """
    if wanted is DrawSpeed.EXACT:
        return EXACTLY
    unet = pipe.unet
    decode = _compiled_decoder(pipe.vae)
    if wanted is DrawSpeed.COMPILED:
        return Speeds((FastUNet(DrawSpeed.COMPILED, compile_whole(unet)),), decode=decode)
    device = unet.conv_in.weight.device
    why = why_no_fp8(device, dtype)
    if why is None and not room:
        why = Without.MEMORY
    if why is None:
        made = _try_fp8(unet, targets, recorder)
        if not isinstance(made, Without):
            return _with_fp8(unet, made, patcher, watch, decode)
        why = made
    log.warning("no_fp8", because=why.value)
    if why is Without.NO_GPU:
        # Where compiling takes minutes and gains nothing that was asked for.
        return Speeds(without=((DrawSpeed.FP8, why),))
    compiled = FastUNet(DrawSpeed.COMPILED, compile_whole(unet))
    return Speeds((compiled,), ((DrawSpeed.FP8, why),), decode)


def _with_fp8(
    unet: Any,
    made: tuple[Twin, Fp8Weights],
    patcher: LoraPatcher,
    watch: Callable[[Any], None],
    decode: Callable[[Tensor], Tensor] | None,
) -> Speeds:
    twin, weights = made
    patcher.follow(weights)
    watch(twin.unet)
    log.info("fp8_copied", layers=len(twin.layers), bytes=weights.nbytes)

    def give_up() -> None:
        patcher.follow(None)
        watch(None)

    first = FastUNet(DrawSpeed.FP8, compile_whole(twin.unet), give_up)
    # Compiled when it is called, which it is only where the first one cannot be.
    second = FastUNet(DrawSpeed.COMPILED, compile_whole(unet))
    return Speeds((first, second), decode=decode)


def _try_fp8(
    unet: Any, targets: ModelTargets, recorder: Recorder | None
) -> tuple[Twin, Fp8Weights] | Without:
    weight = unet.conv_in.weight
    try:
        by_rows = multiplies_by_rows(weight.device, weight.dtype, shapes(unet))
        if by_rows is None:
            return Without.CHECK
        return make_fp8(unet, targets, recorder, by_rows=by_rows)
    except Exception as error:
        # Whatever it is, pictures can be drawn without.
        log.warning("fp8_not_made", error=repr(error)[:500])
        short = is_out_of_memory(error)
        let_go(error)
        return Without.MEMORY if short else Without.CHECK


def make_fp8(
    unet: Any, targets: ModelTargets, recorder: Recorder | None = None, *, by_rows: bool
) -> tuple[Twin, Fp8Weights]:
    """A twin of `unet` that multiplies in 8 bit, and what keeps its weights in step."""
    twin = twin_of(unet, by_rows=by_rows)
    named = {f"unet.{name}.weight": name for name in twin.layers}
    live = {full: targets.modules[f"unet.{name}"].weight.detach() for full, name in named.items()}
    layers = {full: twin.layers[name] for full, name in named.items()}
    return twin, Fp8Weights(layers, live, recorder)


def _compiled_decoder(vae: Any) -> Callable[[Tensor], Tensor] | None:
    """None where it would gain nothing, or where the VAE changes its precision to decode."""
    if vae.device.type != "cuda" or vae.dtype is not torch.bfloat16:
        return None

    def decode(latents: Tensor) -> Tensor:
        if vae.post_quant_conv is not None:
            latents = vae.post_quant_conv(latents)
        pixels: Tensor = vae.decoder(latents)
        return pixels

    return compile_whole(decode)


def compile_whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """A module or function compiled as a whole, once for each shape that it meets."""
    options: dict[str, Any] = {}
    # Imported late: only who compiles needs it.
    from torch._inductor import config

    if hasattr(config, "deterministic"):
        # Kernels are chosen by rule, not by a race that another start might decide otherwise.
        options["deterministic"] = True

    def run(*args: Any, **arguments: Any) -> Any:
        return function(*args, **arguments)

    # Not the module itself: torch would leave a mark on it, and it is proven to be as it was.
    compiled: Callable[..., Any] = torch.compile(
        run, fullgraph=True, dynamic=False, options=options
    )
    return compiled
