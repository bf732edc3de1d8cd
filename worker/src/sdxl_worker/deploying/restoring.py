"""A worker that was kept with its GPU's memory, and what must be seen of it before it serves again.

Duty: the proof that is taken before a snapshot of the GPU, and looked at after each restore: the
device, every weight, a known picture's pixels. And what no two restored containers may share.
Must not know: Modal, HTTP, volumes. Imports torch only inside, as a start may not ask CUDA yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import HealthStatus
from sdxl_worker.settings import Settings

if TYPE_CHECKING:
    import torch

    from sdxl_worker.assembly import Assembly
    from sdxl_worker.engine import Engine

log = structlog.get_logger()
# A look takes about a second; a GPU that does not answer would take for ever.
_LOOK_SECONDS = 60.0


@dataclass(frozen=True)
class Proof:
    """What must be the same after a restore.

    Attributes:
        device: kind of GPU, its memory and abilities.
        weights: see `loading.identity`.
        picture: SHA-256 of a known picture's pixels, drawn in the way requests are.
    """

    device: str
    weights: str
    picture: str


@dataclass(frozen=True)
class Held:
    """An engine that is ready and has served nobody, and what is known of it.

    Attributes:
        settings: with which it was started; no secrets.
    """

    engine: Engine
    proof: Proof
    settings: Settings


def hold(engine: Engine, settings: Settings) -> Held | None:
    """`engine`, as it may go into a snapshot; None where it is not ready."""
    import torch

    if engine.health().status is not HealthStatus.READY:
        return None
    held = Held(engine, asyncio.run(engine.look(prove)), settings)
    torch.cuda.empty_cache()  # what is free need not be kept; nothing where there is no GPU
    return held


def problem_of(
    held: Held,
    settings: Settings,
    prove_again: Callable[[Engine], Awaitable[Proof]] | None = None,
    look_s: float = _LOOK_SECONDS,
) -> str | None:
    """Why a restored engine must not serve, in words that anybody may read; None: it may.

    Args:
        settings: those of today, without secrets.
    """
    if settings != held.settings:
        return "a setting has changed since the snapshot was taken"

    async def look() -> Proof:
        async with asyncio.timeout(look_s):
            return await (prove_again or (lambda engine: engine.look(prove)))(held.engine)

    try:
        proof = asyncio.run(look())
    except TimeoutError:
        return f"the restored GPU did not answer within {look_s:g} s"
    except Exception as error:
        log.warning("restored_worker_is_broken", error=repr(error)[:500])
        return f"the restored worker could not draw ({type(error).__name__})"
    for name in ("device", "weights", "picture"):
        if getattr(proof, name) != getattr(held.proof, name):
            return f"the restored worker has another {name} than the one that was kept"
    return None


def prove(ready: Assembly) -> Proof:
    """Looks at everything that a request depends on; on the lane.

    Raises:
        ModelCorrupted: a weight is not what it was when the worker started.
    """
    from sdxl_worker.loading.identity import weights_identity
    from sdxl_worker.run import Run

    ready.verify_full()
    device, limits = ready.model.device, ready.model.limits
    # On a GPU the size that is recorded or compiled; two steps show all of it.
    side = limits.nearest_side(limits.native_size if device.type == "cuda" else limits.min_side)
    request = GenerateRequest(
        prompt="what was kept", steps=2, cfg=5.5, width=side, height=side, seed=0
    )
    drawn = ready.drawer.draw(Run(request, device=device, timeout_s=math.inf))
    pixels = hashlib.sha256(b"".join(one.image.tobytes() for one in drawn))
    return Proof(_described(device), weights_identity(ready.model.pipe), pixels.hexdigest())


def _described(device: torch.device) -> str:
    import torch

    if device.type != "cuda":
        return device.type
    # Asked anew: torch keeps its first answer, from before the snapshot.
    free, total = torch.cuda.mem_get_info(device)
    del free
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, {total} bytes, sm{major}{minor}"


def renew_randomness() -> None:
    """After a restore: containers of one snapshot would otherwise all draw the same numbers.

    Seeds of pictures, ids and names of files come from the system and not from these; libraries
    may use them.
    """
    random.seed()
    if "numpy" in sys.modules:
        import numpy

        numpy.random.seed()
    if "torch" in sys.modules:
        import torch

        torch.default_generator.seed()
