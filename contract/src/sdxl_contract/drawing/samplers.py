"""Samplers by name: ours, and how other tools spell them.

Must not know: what a sampler computes.
"""

from __future__ import annotations

import re
from enum import StrEnum

_SAMPLER_NAME_MAX = 80


class Scheduler(StrEnum):
    """Samplers by their usual names; `default` is the one the model's folder states.

    `karras` is the spacing of noise levels by that name, `trailing` the one that few-step LoRAs
    want (`sgm_uniform` elsewhere). Other tools' spellings are read too: see `scheduler_named`.
    """

    DEFAULT = "default"
    EULER = "euler"
    EULER_KARRAS = "euler_karras"
    EULER_TRAILING = "euler_trailing"
    EULER_A = "euler_a"
    EULER_A_TRAILING = "euler_a_trailing"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    DPMPP_2M_TRAILING = "dpmpp_2m_trailing"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_2M_SDE_KARRAS = "dpmpp_2m_sde_karras"
    DPMPP_SDE = "dpmpp_sde"
    DPMPP_SDE_KARRAS = "dpmpp_sde_karras"
    DPMPP_2S = "dpmpp_2s"
    DPMPP_2S_KARRAS = "dpmpp_2s_karras"
    DPM2 = "dpm2"
    DPM2_KARRAS = "dpm2_karras"
    DPM2_A = "dpm2_a"
    DDIM = "ddim"
    DDIM_TRAILING = "ddim_trailing"
    DDPM = "ddpm"
    DEIS = "deis"
    HEUN = "heun"
    HEUN_KARRAS = "heun_karras"
    LMS = "lms"
    LMS_KARRAS = "lms_karras"
    UNIPC = "unipc"
    LCM = "lcm"
    TCD = "tcd"


# Names that are still understood and no longer drawn → what to use: diffusers' LMS needs SciPy, and
# DPM++ 2M is a multistep method of the same cost that needs fewer steps.
RETIRED_SCHEDULERS = {
    Scheduler.LMS: Scheduler.DPMPP_2M,
    Scheduler.LMS_KARRAS: Scheduler.DPMPP_2M_KARRAS,
}

# Parts of other tools' names → ours, applied in this order to a name without blanks and signs.
_SAMPLER_PARTS = (
    ("++", "pp"),
    ("discretescheduler", ""),
    ("scheduler", ""),
    ("sgmuniform", "trailing"),
    ("ancestral", "a"),
    ("kdpm2", "dpm2"),
    ("dpmsolvermultistep", "dpmpp2m"),
    ("dpmsolversinglestep", "dpmpp2s"),
    ("multistep", ""),
)


def _sampler_key(name: str) -> str:
    key = re.sub(r"[\s_().-]", "", name.lower())
    for part, ours in _SAMPLER_PARTS:
        key = key.replace(part, ours)
    return key


_SAMPLERS = {_sampler_key(scheduler.value): scheduler for scheduler in Scheduler}


def scheduler_named(name: str) -> Scheduler | None:
    """The sampler that A1111 (`DPM++ 2M Karras`), ComfyUI (`euler_ancestral`) or diffusers
    (`TCDScheduler`) call so, or its own name here; None where it is none that is offered.
    """
    return _SAMPLERS.get(_sampler_key(name)) if len(name) <= _SAMPLER_NAME_MAX else None
