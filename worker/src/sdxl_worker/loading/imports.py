"""torch, diffusers and transformers, imported without stopping to look for garbage.

Duty: the largest part of a start on a CPU, a fifth shorter. Must not know: settings, models, files.
"""

from __future__ import annotations

import gc
from typing import Any


def import_libraries() -> None:
    """Import all that an SDXL pipeline needs of the three libraries.

    Imports make hardly any garbage, and lasting objects by the million, through which Python's
    collector would go again and again. It is paused meanwhile, and never looks at them later.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
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
