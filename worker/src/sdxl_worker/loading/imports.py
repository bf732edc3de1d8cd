"""torch, diffusers and transformers, imported without stopping to look for garbage.

Duty: the largest part of a start on a CPU, a fifth shorter; and what torch must find set when it is
imported. Must not know: settings, models, files.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

_TURN_S = 0.001


def share_the_interpreter() -> None:
    """For a process that draws on one thread and serves on others, once its model is loaded.

    Python's collector would go through all objects that stay for good again and again, each time
    some 30 ms in which nothing else runs. And a thread that wants the interpreter waits for a fifth
    of the time that it waits by itself: launching a step takes many turns (45 operations beside
    four busy threads 13 ms, with this 0.4; shorter turns are worse again).
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_TURN_S)


def import_libraries(once_torch_is_there: Callable[[], None] = lambda: None) -> None:
    """Import all that an SDXL pipeline needs of the three libraries.

    Args:
        once_torch_is_there: called before the other two, which take most of the time.

    Imports make hardly any garbage, and lasting objects by the million, through which Python's
    collector would go again and again. It is paused meanwhile, and never looks at them later.

    OpenMP's threads then sleep while they wait for each other. As they are by themselves they spin,
    which on cores that others use too keeps from the core whom they wait for: the small model, two
    threads on two busy cores, drew 8 steps in 50 s, and in 1 s with this; on idle ones in 0.45 s
    and 0.53 s. `OMP_WAIT_POLICY`, where it is set, stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        once_torch_is_there()
        import diffusers
        import transformers

        # Both import their modules on first use; these are the ones that `from_folder` builds from.
        _: Any = (
            diffusers.StableDiffusionXLPipeline, diffusers.EulerDiscreteScheduler,
            transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer,
        )  # fmt: skip
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
