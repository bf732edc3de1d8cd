"""GPU prices per second, so that an image's cost can be said in one way everywhere.

Duty: one dated table. Must not know: how seconds were measured.
Source: Modal's published per-second prices, USD, as read on `PRICES_AS_OF`.
"""

from __future__ import annotations

PRICES_AS_OF = "2026-08-01"

USD_PER_SECOND: dict[str, float] = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
}
# Modal multiplies all prices of a container whose region was chosen: less for a broad one (us, eu),
# more for a narrow one (us-east, eu-west-1).
REGION_BROAD_FACTOR = 1.5
REGION_NARROW_FACTOR = 1.75
CPU_CORE_USD_PER_SECOND = 0.0000131
MEMORY_GIB_USD_PER_SECOND = 0.00000222


def region_factor(region: str) -> float:
    """What Modal multiplies its prices by for a container that must run in `region`."""
    return REGION_NARROW_FACTOR if "-" in region else REGION_BROAD_FACTOR


def usd(gpu: str, seconds: float) -> float | None:
    """Price in USD of `seconds` of `gpu`; None for a GPU that the table does not hold."""
    price = USD_PER_SECOND.get(gpu)
    return None if price is None else price * seconds


# Names of Modal that the price table has more precisely.
_OTHERWISE_CALLED = {"A100": "A100-40GB", "A10G": "A10"}


def price_row(gpu: str) -> str | None:
    """The row of the price table for a GPU as Modal spells it; None if there is none."""
    plain = gpu.upper().rstrip("!+")
    row = _OTHERWISE_CALLED.get(plain, plain)
    return row if row in USD_PER_SECOND else None


def rest_usd_per_second(cores: float, memory_mib: float) -> float:
    """USD per second of a container's processors and memory, before a region's factor."""
    return cores * CPU_CORE_USD_PER_SECOND + memory_mib / 1024 * MEMORY_GIB_USD_PER_SECOND
