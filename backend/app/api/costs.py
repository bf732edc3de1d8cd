"""`/costs`: what the pictures cost."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.deps import OwnerDep, ServicesDep
from app.schemas.costs import CostSummary
from app.services import costs

router = APIRouter(prefix="/costs", tags=["costs"])


@router.get("/summary")
async def read_summary(
    owner: OwnerDep, services: ServicesDep, days: Annotated[int, Query(ge=1, le=3660)] = 30
) -> CostSummary:
    """USD by day, avatar and LoRA."""
    return await costs.summarise(services.database, owner, days)
