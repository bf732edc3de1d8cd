"""Samplers as A1111 names them: a solver, and beside it the spacing of its steps."""

from __future__ import annotations

import re

from app.core.errors import NotFound
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.request import Scheduler, scheduler_named

SOLVERS = {
    "Euler": "k_euler",
    "Euler a": "k_euler_a",
    "DPM++ 2M": "k_dpmpp_2m",
    "DPM++ 2M SDE": "k_dpmpp_2m_sde",
    "DPM++ SDE": "k_dpmpp_sde",
    "DPM++ 2S": "k_dpmpp_2s",
    "DPM2": "k_dpm_2",
    "DPM2 a": "k_dpm_2_a",
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "DEIS": "deis",
    "Heun": "k_heun",
    "UniPC": "unipc",
    "LCM": "lcm",
    "TCD": "tcd",
}
SPACINGS = {"automatic": "Automatic", "karras": "Karras", "sgm_uniform": "SGM Uniform"}
_OLD_SPACING = re.compile(r"\s+(karras|exponential|sgm uniform|trailing)$", re.IGNORECASE)
_NONE = frozenset({"", "automatic", "none", "use same scheduler"})


def joined(sampler: str | None, spacing: str | None) -> Scheduler | None:
    """The one sampler that both names mean; None where neither says anything.

    Raises:
        NotFound: there is no such solver.
        InvalidRequest: it is not offered with this spacing.
    """
    spacing = "" if (spacing or "").strip().lower() in _NONE else (spacing or "").strip()
    name = (sampler or "").strip()
    if not name:
        if spacing:
            name = "Euler"
        else:
            return None
    plain = scheduler_named(name)
    if plain is None:
        error = NotFound("Sampler not found", field="sampler_name")
        error.details = {"hint": f"offered: {', '.join(SOLVERS)}"}
        raise error
    if not spacing:
        return plain
    # The older way to write it has a spacing in the name; one beside it counts for more.
    name = _OLD_SPACING.sub("", name)
    found = scheduler_named(f"{name} {spacing}")
    if found is None:
        offered = [
            shown for shown in list(SPACINGS.values())[1:] if scheduler_named(f"{name} {shown}")
        ]
        raise InvalidRequest(
            f"scheduler: {name} is offered with {' or '.join(['Automatic', *offered])}",
            details={"field": "scheduler"},
        )
    return found


def shown(scheduler: str | None) -> tuple[str, str]:
    """(solver, spacing) as A1111 writes them in a picture's parameters."""
    if scheduler in (None, Scheduler.DEFAULT):
        return "Automatic", "Automatic"
    for solver in SOLVERS:
        for spacing in SPACINGS.values():
            name = solver if spacing == "Automatic" else f"{solver} {spacing}"
            if scheduler_named(name) == scheduler:
                return solver, spacing
    return str(scheduler), "Automatic"
