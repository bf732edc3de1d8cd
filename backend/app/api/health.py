"""Whether the server lives and is ready, and what the base model can draw."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.deps import OwnerDep, ServicesDep
from app.schemas.common import Out
from app.schemas.content import WaitingFor
from sdxl_contract.limits import (
    CFG_DEFAULT,
    CFG_MAX,
    CFG_MIN,
    SCALE_MAX,
    SCALE_MIN,
    STEPS_DEFAULT,
    STEPS_MAX,
    STEPS_MIN,
    ModelLimits,
)

router = APIRouter(tags=["health"])
model_router = APIRouter(tags=["model"])


class Ready(BaseModel):
    """`GET /health/ready`. The worker's state is told but not asked for: jobs wait for it."""

    status: Literal["ready", "not_ready"]
    database: bool
    jobs: bool
    worker: str


class Range(BaseModel):
    """A number's bounds and default."""

    minimum: float
    maximum: float
    default: float


class ModelOut(Out):
    """`GET /api/v1/model`: what a form needs to know. Sides in px."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None
    family: str
    device: str | None
    gpu: str | None
    worker: str
    known: bool
    limits: ModelLimits
    schedulers: list[str] = Field(
        description="samplers to choose from; empty: the worker never said"
    )
    waiting_for: WaitingFor | None = Field(
        description="what keeps every content waiting, if anything"
    )
    steps: Range = Range(minimum=STEPS_MIN, maximum=STEPS_MAX, default=STEPS_DEFAULT)
    cfg: Range = Range(minimum=CFG_MIN, maximum=CFG_MAX, default=CFG_DEFAULT)
    lora_scale: Range = Range(minimum=SCALE_MIN, maximum=SCALE_MAX, default=1.0)


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@router.get("/health/ready", responses={503: {"model": Ready}})
async def ready(services: ServicesDep, response: Response) -> Ready:
    """The database answers and jobs are worked off: 200, else 503."""
    database = await services.database.check()
    jobs = services.queue.is_running
    if not (database and jobs):
        response.status_code = 503
    health = services.base_model.live
    return Ready(
        status="ready" if database and jobs else "not_ready",
        database=database,
        jobs=jobs,
        worker=health.status.value if health else "unreachable",
    )


@model_router.get("/model")
async def read_model(_: OwnerDep, services: ServicesDep) -> ModelOut:
    """The base model's limits as the worker states them, or last did.

    While `known` is false they are SDXL's, and nothing is refused by them.
    """
    limits = await services.base_model.fresh_limits()
    known, now = services.base_model.known, services.base_model.live
    signature = known.signature if known else None
    return ModelOut(
        name=known.base_model if known else None,
        family=signature.family if signature else "SDXL",
        device=known.device if known else None,
        gpu=known.gpu if known else None,
        worker=now.status.value if now else "unreachable",
        known=limits is not None,
        limits=limits or ModelLimits(),
        schedulers=services.base_model.schedulers,
        waiting_for=services.gate.waiting_for,
    )
