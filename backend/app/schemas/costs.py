"""The cost summary's shape."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import Field

from app.schemas.common import Out


class CostGroup(Out):
    """Sums of some contents. `day`, or `id` and `name`, say which."""

    day: str | None = None
    id: uuid.UUID | None = None
    name: str | None = None
    contents: int = Field(description="that succeeded")
    images: int
    seconds: float = Field(description="of the worker's device, waiting in its line left out")
    actual_usd: float = Field(description="of what has a price")
    estimated_usd: float = Field(description="actual, and what is queued or running may cost")
    cold_start_usd: float = Field(description="the part of actual_usd spent on starting workers")
    lora_usd: float = Field(description="... on fetching, applying and removing LoRAs")
    generation_usd: float = Field(description="... on drawing")
    cold_start_seconds: float
    lora_seconds: float
    generation_seconds: float
    unpriced_seconds: float = Field(description="on devices without a price, such as a CPU")


class CostSummary(Out):
    """`GET /costs/summary`."""

    days: int
    since: datetime
    currency: str = "USD"
    prices_as_of: str
    total: CostGroup
    by_day: list[CostGroup]
    by_avatar: list[CostGroup]
    by_lora: list[CostGroup]
