"""SQL of styles and wildcards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import PromptStyle, Wildcard

Kind = type[PromptStyle] | type[Wildcard]


class WordsRepository:
    """One owner's."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def styles(self) -> Sequence[PromptStyle]:
        """All, by name."""
        query = select(PromptStyle).where(PromptStyle.owner == self._owner)
        return (await self._session.scalars(query.order_by(PromptStyle.name))).all()

    async def wildcards(self) -> Sequence[Wildcard]:
        """All, by name."""
        query = select(Wildcard).where(Wildcard.owner == self._owner)
        return (await self._session.scalars(query.order_by(Wildcard.name))).all()

    async def styles_named(self, names: Iterable[str]) -> dict[str, PromptStyle]:
        """Those of these names, by name."""
        query = select(PromptStyle).where(
            PromptStyle.owner == self._owner, PromptStyle.name.in_(set(names))
        )
        return {style.name: style for style in await self._session.scalars(query)}

    async def lines_of(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The lines of the wildcards of these names, by name."""
        query = select(Wildcard).where(Wildcard.owner == self._owner, Wildcard.name.in_(set(names)))
        return {one.name: one.lines for one in await self._session.scalars(query)}

    async def count_others(self, kind: Kind, name: str) -> int:
        """How many of a kind there are beside `name`."""
        query = select(func.count()).where(kind.owner == self._owner, kind.name != name)
        return await self._session.scalar(query) or 0

    async def put(self, kind: Kind, name: str, values: dict[str, object]) -> None:
        """Write one, new or in place of what had the name."""
        query = insert(kind).values(owner=self._owner, name=name, **values)
        await self._session.execute(
            query.on_conflict_do_update(index_elements=["owner", "name"], set_=values)
        )

    async def delete(self, kind: Kind, name: str) -> bool:
        """Remove one; False where there is none."""
        removed = await self._session.scalar(
            delete(kind).where(kind.owner == self._owner, kind.name == name).returning(kind.name)
        )
        return removed is not None
