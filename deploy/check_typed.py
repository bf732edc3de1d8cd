"""What is typed wrongly is refused where it is typed, by its name; what Modal takes is taken.

Duty: the part of `make deploy-check` that reads settings and prices (M4 to M7). Needs neither a
process nor Modal's package.
"""

from __future__ import annotations

from collections.abc import Mapping

from sdxl_worker.deploying import settings

# A value that cannot work, and what its refusal must hold.
REFUSED: tuple[tuple[Mapping[str, str], str], ...] = (
    ({"QUEUE_MAX": "abc"}, "QUEUE_MAX: "),
    ({"DTYPE": "int8"}, "DTYPE: "),
    ({"DRAW_SPEED": "fast"}, "DRAW_SPEED: "),
    ({"DEPLOY_GPU": "L40S:2"}, "DEPLOY_GPU: "),
    ({"DEPLOY_CPU": "-1"}, "DEPLOY_CPU: "),
    ({"DEPLOY_ROUTING": "sticky"}, "DEPLOY_ROUTING: "),
    ({"DEPLOY_LORA_MOUNT": "/weights"}, "would hide the other"),
    ({"DEPLOY_LORA_MOUNT": "/weights/loras"}, "would hide the other"),
    ({"DEPLOY_GPUS": "T4"}, "DEPLOY_GPUS is not a setting"),
    ({"VAE_MODEL": "a/b"}, "VAE_MODEL does not work on Modal"),
)
TAKEN = ("l40s", "RTX-PRO-6000", "B200+", "H100!", "A100-80GB", "l4,T4")
# What Modal multiplies by.
REGIONS = {"": 1.0, "us": 1.5, "eu-west": 1.75, "us,eu-west-1": 1.75}


_MOUNTS = ("DEPLOY_LORA_MOUNT", "DEPLOY_WEIGHTS_MOUNT")


def check_typed() -> list[str]:
    """Problems: a value that is let through, or not named, or wrongly refused or priced."""
    problems = []
    for values, words in REFUSED:
        fault = "M7" if {*values} & {*_MOUNTS} else "M6"
        shown = " ".join(f"{name}={value}" for name, value in values.items())
        refusal = _refusal(values)
        if refusal is None:
            problems.append(
                f"{fault}: {shown} is let through: it would fail in a container that is paid for"
            )
        elif words not in refusal:
            problems.append(f"{fault}: {shown} is refused without saying {words!r}: {refusal}")
    problems += [
        f"M4: DEPLOY_GPU={gpu}, which Modal takes, is refused: {refusal}"
        for gpu in TAKEN
        if (refusal := _refusal({"DEPLOY_GPU": gpu})) is not None
    ]
    plain = _price({})
    for region, factor in REGIONS.items():
        found = _price({"DEPLOY_REGION": region})
        if abs(found - factor * plain) > 1e-12:
            problems.append(
                f"M5: DEPLOY_REGION={region} is priced {found / plain:g} times, not {factor}"
            )
    return problems


def _read(values: Mapping[str, str]) -> settings.Deployment:
    from deploy.check import environment

    with environment(values):
        return settings.Deployment.from_environment()


def _refusal(values: Mapping[str, str]) -> str | None:
    try:
        _read(values)
    except ValueError as error:
        return str(error)
    return None


def _price(values: Mapping[str, str]) -> float:
    deployment = _read(values)
    return settings.container_usd_per_second(deployment, deployment.gpu[0]) or 0.0
