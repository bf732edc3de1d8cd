"""What a deployment on Modal costs, before anything is spent.

Duty: a deployment's settings and the dated prices → lines for people. Must not know: Modal, what is
deployed already.
"""

from __future__ import annotations

from deploy.timings import GPUS, START_OF, STEPS, timings
from sdxl_contract import prices
from sdxl_contract.prices import price_row, rest_usd_per_second
from sdxl_worker.deploying.settings import (
    CONTROL_CORES,
    CONTROL_MEMORY_MIB,
    CONTROL_WINDOW_S,
    Deployment,
    container_usd_per_second,
)

HOUR_S = 3600.0
MONTH_HOURS = 730
# `download_weights`: its processors, and as long as it may take at 15 MB/s.
FILL_CORES = 4.0
FILL_S = 600.0


def cost_lines(deployment: Deployment) -> list[str]:
    """What the deployment costs, line by line."""
    lines = [
        f"What this costs, in USD, at Modal's prices as published on {prices.PRICES_AS_OF}"
        " (GPU, processors and memory together):"
    ]
    if deployment.region:
        lines.append(
            f"  times {deployment.region_factor:g}, as DEPLOY_REGION is "
            f"{','.join(deployment.region)}: Modal charges more for a chosen region"
        )
    known = {gpu: container_usd_per_second(deployment, gpu) for gpu in deployment.gpu}
    dearest = max((price for price in known.values() if price is not None), default=None)
    for gpu, price in known.items():
        if price is None:
            lines.append(f"  {gpu}: not in this project's price table; see modal.com/pricing")
            continue
        lines.append(f"  one container with {gpu}: {price * HOUR_S:.2f} an hour while it runs")
        lines += _picture_lines(deployment, gpu, price)
    if dearest is not None:
        lines += _fleet_lines(deployment, dearest * HOUR_S, None in known.values())
    fill = FILL_S * rest_usd_per_second(FILL_CORES, deployment.memory_mib)
    lines.append(f"  the weights onto the volume, once: about {fill:.2f}, without a GPU")
    control = rest_usd_per_second(CONTROL_CORES, CONTROL_MEMORY_MIB) * deployment.region_factor
    lines.append(
        f"  health, cancel and metrics, without a GPU: {control * HOUR_S:.3f} an hour while asked "
        f"for, and {CONTROL_WINDOW_S} s after"
    )
    lines.append("  not in these figures: storage and traffic")
    return lines


def _picture_lines(deployment: Deployment, gpu: str, price: float) -> list[str]:
    kind = price_row(gpu)
    if kind not in GPUS:
        return []
    start = START_OF[deployment.snapshot]
    table = timings(kind, start)
    warm = table.lane_s + table.after_s
    window = deployment.scaledown_window_seconds
    alone = table.cold_start_s + warm + window
    return [
        f"    a picture of 1024x1024 in {STEPS} steps: about {warm * price:.4f} ({warm:.1f} s)",
        f"    one that finds nothing running: about {alone * price:.3f}, of which the start is "
        f"{table.cold_start_s:.0f} s and the wait for another request {window} s",
    ]


def _fleet_lines(deployment: Deployment, hour: float, more: bool) -> list[str]:
    """Bounds from the dearest GPU's `hour` in USD; `more`: there is one without a known price."""
    kept = deployment.min_containers
    idle = (
        f"{kept * hour:.2f} an hour, {kept * hour * MONTH_HOURS:,.0f} a month: "
        f"DEPLOY_MIN_CONTAINERS is {kept}"
        if kept
        else "nothing"
    )
    most = deployment.max_containers
    return [
        f"  while nobody asks: {idle}",
        f"  at most: {most * hour:.2f} an hour, as DEPLOY_MAX_CONTAINERS is {most}"
        + (", if all of it is GPUs with a price here" if more else ""),
        "  seconds are published or assumed ones (docs/scaling.md); after the deployment,",
        "  .venv/bin/modal run worker/app.py::bench measures yours",
    ]
