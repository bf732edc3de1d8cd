"""A filter of contents as SQL conditions."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, and_, func, or_, select

from app.models import BoardImage, Content, Image
from app.models.filters import ContentFilter

_WORDS = re.compile(r"\w+")
_MAX_WORDS = 20


def conditions(wanted: ContentFilter) -> list[ColumnElement[bool]]:
    """All of which a content must meet."""
    found = [_is_there(binned=wanted.binned)]
    for column, value in (
        (Content.avatar_id, wanted.avatar_id),
        (Content.status, wanted.status),
        (Content.batch_id, wanted.batch_id),
    ):
        if value is not None:
            found.append(column == value)
    if wanted.since is not None:
        found.append(Content.created_at >= wanted.since)
    if wanted.until is not None:
        found.append(Content.created_at < wanted.until)
    if wanted.lora_model_id is not None:
        found.append(Content.loras.contains([{"lora_model_id": str(wanted.lora_model_id)}]))
    query = _query(wanted.words or "")
    if query:
        found.append(Content.prompt_search.op("@@")(func.to_tsquery("simple", query)))
    if wanted.starred:
        found.append(_has_image(Image.starred_at.is_not(None), Image.deleted_at.is_(None)))
    if wanted.board_id is not None:
        on_board = select(BoardImage.image_id).where(BoardImage.board_id == wanted.board_id)
        found.append(_has_image(Image.id.in_(on_board), Image.deleted_at.is_(None)))
    return found


def _is_there(*, binned: bool) -> ColumnElement[bool]:
    if binned:
        return or_(Content.deleted_at.is_not(None), _has_image(Image.deleted_at.is_not(None)))
    return Content.deleted_at.is_(None)


def _has_image(*those: ColumnElement[bool]) -> ColumnElement[bool]:
    return Content.id.in_(select(Image.generation_id).where(and_(*those)))


def _query(words: str) -> str:
    """Every word, each by its beginning; nothing of the caller's is syntax. Empty: no word."""
    return " & ".join(f"'{word}':*" for word in _WORDS.findall(words)[:_MAX_WORDS])
