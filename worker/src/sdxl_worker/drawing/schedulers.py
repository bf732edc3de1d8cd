"""Samplers by their usual names, built from the loaded model's own scheduler settings.

Must not know: prompts, LoRAs, requests.
"""

from __future__ import annotations

from typing import Any

from sdxl_contract.request import Scheduler

_KARRAS = {"use_karras_sigmas": True}
_TRAILING = {"timestep_spacing": "trailing"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_DDIM = {"clip_sample": False, "set_alpha_to_one": False}
_EULER, _HEUN = "EulerDiscreteScheduler", "HeunDiscreteScheduler"
_ANCESTRAL = "EulerAncestralDiscreteScheduler"
_DPMPP, _DPMPP_2S = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_DPM2, _DPM2_A = "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"

_CLASSES: dict[Scheduler, tuple[str, dict[str, Any]]] = {
    Scheduler.EULER: (_EULER, {}),
    Scheduler.EULER_KARRAS: (_EULER, _KARRAS),
    Scheduler.EULER_TRAILING: (_EULER, _TRAILING),
    Scheduler.EULER_A: (_ANCESTRAL, {}),
    Scheduler.EULER_A_TRAILING: (_ANCESTRAL, _TRAILING),
    Scheduler.DPMPP_2M: (_DPMPP, {}),
    Scheduler.DPMPP_2M_KARRAS: (_DPMPP, _KARRAS),
    Scheduler.DPMPP_2M_TRAILING: (_DPMPP, _TRAILING),
    Scheduler.DPMPP_2M_SDE: (_DPMPP, _SDE),
    Scheduler.DPMPP_2M_SDE_KARRAS: (_DPMPP, _SDE | _KARRAS),
    # The names that this worker had first for the two above.
    Scheduler.DPMPP_SDE: (_DPMPP, _SDE),
    Scheduler.DPMPP_SDE_KARRAS: (_DPMPP, _SDE | _KARRAS),
    Scheduler.DPMPP_2S: (_DPMPP_2S, {}),
    Scheduler.DPMPP_2S_KARRAS: (_DPMPP_2S, _KARRAS),
    Scheduler.DPM2: (_DPM2, {}),
    Scheduler.DPM2_KARRAS: (_DPM2, _KARRAS),
    Scheduler.DPM2_A: (_DPM2_A, {}),
    Scheduler.DDIM: ("DDIMScheduler", _DDIM),
    Scheduler.DDIM_TRAILING: ("DDIMScheduler", _DDIM | _TRAILING),
    Scheduler.DDPM: ("DDPMScheduler", {"clip_sample": False}),
    Scheduler.DEIS: ("DEISMultistepScheduler", {}),
    Scheduler.HEUN: (_HEUN, {}),
    Scheduler.HEUN_KARRAS: (_HEUN, _KARRAS),
    Scheduler.UNIPC: ("UniPCMultistepScheduler", {}),
    Scheduler.LCM: ("LCMScheduler", {}),
    Scheduler.TCD: ("TCDScheduler", {}),
}
# Consistency models choose their steps among so many.
_CONSISTENCY_STEPS = 50
# How much noise TCD puts back after each step; what its authors use.
_TCD_ETA = 0.3


def offered_schedulers() -> list[str]:
    """What a request may name, as `GET /health` lists it."""
    return [name.value for name in Scheduler if name is Scheduler.DEFAULT or name in _CLASSES]


def build_scheduler(name: Scheduler, own: Any, steps: int) -> Any:
    """A fresh scheduler of that name for `steps` steps; `own` is the one the model's folder states.

    A scheduler keeps state from step to step, so every picture gets its own. Retired names never
    come here: `check_limits` refuses them.
    """
    if name is Scheduler.DEFAULT:
        return type(own).from_config(own.config)
    class_name, changes = _CLASSES[name]
    if name in (Scheduler.LCM, Scheduler.TCD):
        changes = changes | {"original_inference_steps": max(_CONSISTENCY_STEPS, steps)}
    # Imported late: it takes seconds, which a start has better uses for.
    import diffusers

    return getattr(diffusers, class_name).from_config(own.config, **changes)


def scheduler_eta(name: Scheduler) -> float:
    """diffusers' `eta`: noise put back after each step; 0 for samplers that do not know it."""
    return _TCD_ETA if name is Scheduler.TCD else 0.0


def scheduler_name(name: Scheduler, own: Any) -> str:
    """The sampler's name as results report it."""
    return type(own).__name__ if name is Scheduler.DEFAULT else name.value
