"""The fleet that `make deploy` makes when nobody sets anything.

Must not know: what is asked of it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from benchmarks.fleet.model import Fleet, Routing
from deploy.timings import START_OF, timings
from sdxl_worker.deploying.settings import Deployment
from sdxl_worker.settings import Settings


def _default(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].default


def shipped_fleet() -> Fleet:
    """The deployment's and the worker's own defaults, whatever this computer's environment says."""
    return Fleet(
        timings(_default(Deployment, "gpu")[0], START_OF[_default(Deployment, "snapshot")]),
        scaledown_window_s=_default(Deployment, "scaledown_window_seconds"),
        min_containers=_default(Deployment, "min_containers"),
        max_containers=_default(Deployment, "max_containers"),
        cache_bytes=_default(Settings, "lora_cache_bytes"),
        volume_bytes=_default(Settings, "lora_cache_dir_bytes"),
        read_ahead=_default(Deployment, "max_inputs") - 1,
        routing=Routing.RECENT if _default(Deployment, "routing") == "queue" else Routing.AFFINITY,
    )
