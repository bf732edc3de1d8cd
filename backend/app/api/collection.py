"""Stars, the bin, `/boards`, and links that show a picture to others."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Path

from app.api.content_out import content_out, image_out
from app.api.deps import KEY_OR_COOKIE, OwnerDep, ServicesDep
from app.schemas.collection import (
    BoardImagesIn,
    BoardIn,
    BoardOut,
    Choice,
    SharedOut,
    ShareIn,
    ShareOut,
    StarIn,
)
from app.schemas.common import Page
from app.schemas.content import ContentOut

content_router = APIRouter(prefix="/content", tags=["content"])
router = APIRouter(prefix="/boards", tags=["boards"])
share_router = APIRouter(tags=["shares"])


@content_router.post("/star", status_code=204)
async def star_images(asked: StarIn, owner: OwnerDep, services: ServicesDep) -> None:
    """Give pictures a star, or take it away: all of them, or none."""
    await services.collection.star(owner, asked.image_ids, starred=asked.starred)


@content_router.post("/bin", status_code=204)
async def bin_contents(asked: Choice, owner: OwnerDep, services: ServicesDep) -> None:
    """Put contents and single pictures into the bin, from which `POST /content/restore` brings
    them back until the server empties it."""
    await services.collection.bin(owner, asked.content_ids, asked.image_ids)


@content_router.post("/restore")
async def restore_contents(
    asked: Choice, owner: OwnerDep, services: ServicesDep
) -> Page[ContentOut]:
    """Take contents, with all their pictures, and single pictures out of the bin again."""
    rows = await services.collection.restore(owner, asked.content_ids, asked.image_ids)
    seconds = services.settings.image_url_seconds
    return Page(items=[content_out(row, services.storage, seconds) for row in rows])


@router.get("")
async def list_boards(owner: OwnerDep, services: ServicesDep) -> Page[BoardOut]:
    """All boards, by name."""
    rows = await services.collection.boards(owner)
    return Page(
        items=[
            BoardOut(id=board.id, name=board.name, images=count, created_at=board.created_at)
            for board, count in rows
        ]
    )


@router.post("", status_code=201)
async def create_board(asked: BoardIn, owner: OwnerDep, services: ServicesDep) -> BoardOut:
    """Make an empty board."""
    board = await services.collection.add_board(owner, asked.name)
    return BoardOut(id=board.id, name=board.name, images=0, created_at=board.created_at)


@router.patch("/{board_id:uuid}", status_code=204)
async def rename_board(
    board_id: uuid.UUID, asked: BoardIn, owner: OwnerDep, services: ServicesDep
) -> None:
    """Give a board another name."""
    await services.collection.rename_board(owner, board_id, asked.name)


@router.delete("/{board_id:uuid}", status_code=204)
async def delete_board(board_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove a board; its pictures stay."""
    await services.collection.remove_board(owner, board_id)


@router.post("/{board_id:uuid}/images", status_code=204)
async def arrange_board(
    board_id: uuid.UUID, asked: BoardImagesIn, owner: OwnerDep, services: ServicesDep
) -> None:
    """Put pictures onto a board and take others off."""
    await services.collection.arrange(owner, board_id, asked.add, asked.remove)


@share_router.post("/shares", status_code=201, dependencies=KEY_OR_COOKIE)
async def share_image(asked: ShareIn, owner: OwnerDep, services: ServicesDep) -> ShareOut:
    """Make a link that shows a picture to whoever has it, until it expires."""
    token, expires_at = await services.collection.share(
        owner, asked.image_id, asked.hours, with_prompt=asked.with_prompt
    )
    return ShareOut(token=token, path=f"/#/shared/{token}", expires_at=expires_at)


@share_router.delete("/shares/{image_id:uuid}", status_code=204, dependencies=KEY_OR_COOKIE)
async def end_shares(image_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """End every link to a picture at once."""
    await services.collection.end_shares(owner, image_id)


async def _token(token: Annotated[str, Path(min_length=20, max_length=100)]) -> str:
    return token


@share_router.get("/shared/{token}")
async def read_shared(token: Annotated[str, Depends(_token)], services: ServicesDep) -> SharedOut:
    """The picture of a link; needs no API key."""
    share, image, content = await services.collection.shared(token)
    seconds = services.settings.image_url_seconds
    return SharedOut(
        url=image_out(image, services.storage, seconds).url,
        width=image.width,
        height=image.height,
        prompt=content.prompt if share.with_prompt else None,
        expires_at=share.expires_at,
    )
