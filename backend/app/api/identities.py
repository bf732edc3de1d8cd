"""`/identities/avatars`: named characters."""

from __future__ import annotations

import uuid

from fastapi import APIRouter

from app.api.content_out import avatar_out
from app.api.deps import OwnerDep, ServicesDep
from app.models import Avatar
from app.schemas.common import Page
from app.schemas.identities import AvatarIn, AvatarOut, AvatarPatch

router = APIRouter(prefix="/identities/avatars", tags=["identities"])


@router.post("", status_code=201)
async def create_avatar(asked: AvatarIn, owner: OwnerDep, services: ServicesDep) -> AvatarOut:
    """Make an avatar."""
    return _out(services, await services.avatars.create(owner, asked))


@router.get("")
async def list_avatars(owner: OwnerDep, services: ServicesDep) -> Page[AvatarOut]:
    """All avatars, newest first."""
    rows = await services.avatars.list(owner)
    return Page(items=[_out(services, row) for row in rows])


@router.get("/{avatar_id:uuid}")
async def read_avatar(avatar_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> AvatarOut:
    """One avatar."""
    return _out(services, await services.avatars.get(owner, avatar_id))


@router.patch("/{avatar_id:uuid}")
async def change_avatar(
    avatar_id: uuid.UUID, asked: AvatarPatch, owner: OwnerDep, services: ServicesDep
) -> AvatarOut:
    """Change some of an avatar's fields."""
    return _out(services, await services.avatars.change(owner, avatar_id, asked))


@router.delete("/{avatar_id:uuid}", status_code=204)
async def delete_avatar(avatar_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove an avatar; its contents stay."""
    await services.avatars.delete(owner, avatar_id)


def _out(services: ServicesDep, avatar: Avatar) -> AvatarOut:
    return avatar_out(avatar, services.storage, services.settings.image_url_seconds)
