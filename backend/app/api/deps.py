"""What routes are handed: the services, and whose call it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.core.db import Database
from app.core.errors import Forbidden
from app.core.security import bearer_token, is_foreign_page, key_digest
from app.core.settings import Settings
from app.models import LOCAL_OWNER
from app.repositories.api_keys import ApiKeyRepository
from app.services.avatars import AvatarService
from app.services.base_model import BaseModel
from app.services.events import EventService
from app.services.generation import GenerationService
from app.services.jobs import JobQueue
from app.services.loras import LoraService
from app.services.storage import Storage
from sdxl_contract.errors import Unauthorized


@dataclass(frozen=True)
class Services:
    """Everything that one running server has."""

    settings: Settings
    database: Database
    storage: Storage
    base_model: BaseModel
    generations: GenerationService
    loras: LoraService
    avatars: AvatarService
    events: EventService
    queue: JobQueue


def get_services(request: Request) -> Services:
    """The running server's services."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_owner(request: Request, services: ServicesDep) -> str:
    """Whose LoRAs, avatars and contents this call sees.

    Raises:
        Unauthorized: a key is needed, or the given one is not valid.
        Forbidden: no key is needed, and a page of another site seems to ask.
    """
    token = bearer_token(request.headers.get("authorization"))
    async with services.database.session() as session:
        keys = ApiKeyRepository(session)
        if token is not None:
            owner = await keys.owner_of(key_digest(token))
            if owner is None:
                raise Unauthorized("This API key is not valid.")
            return owner
        if await keys.any_made():
            raise Unauthorized("An API key is needed: send Authorization: Bearer <api key>.")
    if is_foreign_page(request.headers, services.settings.base_url):
        raise Forbidden(
            "This server needs no API key yet, so it answers only this computer's own addresses."
        )
    return LOCAL_OWNER


OwnerDep = Annotated[str, Depends(get_owner)]
