"""Samplers by their usual names, built from the loaded model's own scheduler settings.

Must not know: prompts, LoRAs, requests.
"""

from __future__ import annotations

from typing import Any

from sdxl_contract.request import Scheduler

_CLASSES: dict[Scheduler, tuple[str, dict[str, Any]]] = {
    Scheduler.EULER: ("EulerDiscreteScheduler", {}),
    Scheduler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    Scheduler.EULER_TRAILING: ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    Scheduler.DPMPP_2M: ("DPMSolverMultistepScheduler", {}),
    Scheduler.DPMPP_2M_KARRAS: ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    Scheduler.DPMPP_SDE: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    Scheduler.DPMPP_SDE_KARRAS: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    Scheduler.DDIM: ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    Scheduler.HEUN: ("HeunDiscreteScheduler", {}),
    Scheduler.LMS: ("LMSDiscreteScheduler", {}),
    Scheduler.UNIPC: ("UniPCMultistepScheduler", {}),
    Scheduler.LCM: ("LCMScheduler", {}),
}


def build_scheduler(name: Scheduler, own: Any) -> Any:
    """A fresh scheduler of that name; `own` is the one the model's folder states.

    A scheduler keeps state from step to step, so every picture gets its own.
    """
    if name is Scheduler.DEFAULT:
        return type(own).from_config(own.config)
    # Imported late: it takes seconds, which a start has better uses for.
    import diffusers

    class_name, changes = _CLASSES[name]
    return getattr(diffusers, class_name).from_config(own.config, **changes)


def scheduler_name(name: Scheduler, own: Any) -> str:
    """What a result says was used."""
    return type(own).__name__ if name is Scheduler.DEFAULT else name.value
