"""Styles and wildcards: kept for each owner, and put into the words of a request.

Duty: a request with names → the same request with words; which line stands for a wildcard is drawn
from the seed, so that the same request gives the same picture. Must not know: HTTP, jobs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.core.errors import Conflict, NotFound
from app.models import PromptStyle, Wildcard
from app.repositories.inputs.words import Kind, WordsRepository
from app.schemas.content import GenerateIn
from app.schemas.inputs.words import STYLE_NAME_MAX, StyleIn, WildcardIn
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.limits import PROMPT_MAX_CHARS

_MOST_KEPT = 500  # of a kind, for each owner
_PLACE = "{prompt}"
WILDCARD_NAME_MAX = 64
# Nothing of it can be read as its end: no two `_` beside one another.
WILDCARD_NAME = re.compile(r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*")
_MARK = re.compile(f"__({WILDCARD_NAME.pattern})__")
_DEEPEST = 4  # lines may name wildcards, and theirs again
_MOST_DRAWN = 200


class WordsService:
    """Every owner's own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def styles(self, owner: str) -> Sequence[PromptStyle]:
        """All, by name."""
        async with self._database.session() as session:
            return await WordsRepository(session, owner).styles()

    async def wildcards(self, owner: str) -> Sequence[Wildcard]:
        """All, by name."""
        async with self._database.session() as session:
            return await WordsRepository(session, owner).wildcards()

    async def put_style(self, owner: str, name: str, style: StyleIn) -> PromptStyle:
        """Keep a style, new or in place of what had its name.

        Raises:
            InvalidRequest: it cannot have this name.
            Conflict: there are too many.
        """
        if len(name) > STYLE_NAME_MAX:
            raise _bad_name(f"must have at most {STYLE_NAME_MAX} characters")
        await self._put(owner, PromptStyle, name, style.model_dump())
        return PromptStyle(owner=owner, name=name, **style.model_dump())

    async def put_wildcard(self, owner: str, name: str, wildcard: WildcardIn) -> Wildcard:
        """Keep a wildcard, new or in place of what had its name.

        Raises:
            InvalidRequest: it cannot have this name.
            Conflict: there are too many.
        """
        if len(name) > WILDCARD_NAME_MAX or not WILDCARD_NAME.fullmatch(name):
            raise _bad_name(
                f"must be at most {WILDCARD_NAME_MAX} of a-z and 0-9, "
                "with single _ or - between them"
            )
        await self._put(owner, Wildcard, name.lower(), wildcard.model_dump())
        return Wildcard(owner=owner, name=name.lower(), lines=wildcard.lines)

    async def _put(self, owner: str, kind: Kind, name: str, values: dict[str, object]) -> None:
        async with self._database.session() as session:
            repository = WordsRepository(session, owner)
            if await repository.count_others(kind, name) >= _MOST_KEPT:
                raise Conflict(
                    f"There are {_MOST_KEPT} of them already: delete one first.", field="name"
                )
            await repository.put(kind, name, values)

    async def delete_style(self, owner: str, name: str) -> None:
        """Remove a style.

        Raises:
            NotFound: there is none of this name.
        """
        await self._delete(owner, PromptStyle, name)

    async def delete_wildcard(self, owner: str, name: str) -> None:
        """Remove a wildcard.

        Raises:
            NotFound: there is none of this name.
        """
        await self._delete(owner, Wildcard, name.lower())

    async def _delete(self, owner: str, kind: Kind, name: str) -> None:
        async with self._database.session() as session:
            if not await WordsRepository(session, owner).delete(kind, name):
                raise NotFound("There is none of this name.", field="name")


def _bad_name(why: str) -> InvalidRequest:
    return InvalidRequest(f"name: {why}", details={"field": "name"})


def may_vary(asked: GenerateIn) -> bool:
    """Whether another seed may give a request other words."""
    texts = (asked.prompt, asked.custom_prompt, asked.negative_prompt)
    hires = asked.hires
    seconds = () if hires is None else (hires.prompt, hires.negative_prompt)
    return bool(asked.styles) or any(_MARK.search(text or "") for text in (*texts, *seconds))


async def with_words(
    session: AsyncSession, owner: str, asked: GenerateIn, draw_seed: Callable[[], int]
) -> GenerateIn:
    """`asked` with its styles and wildcards as words, and with a seed where one drew them.

    `__name__` without a wildcard of that name stays as it is.

    Raises:
        NotFound: there is no such style.
        InvalidRequest: wildcards name one another without end.
    """
    if not may_vary(asked):
        return asked
    repository = WordsRepository(session, owner)
    known = await repository.styles_named(asked.styles)
    for place, name in enumerate(asked.styles):
        if name not in known:
            raise NotFound("There is no style of this name.", field=f"styles[{place}]")
    styles = [known[name] for name in asked.styles]
    prompt_field = "prompt" if asked.custom_prompt is None else "custom_prompt"
    said: dict[str, str | None] = {
        prompt_field: _styled(
            getattr(asked, prompt_field), [one.prompt for one in styles], prompt_field
        ),
        "negative_prompt": _styled(
            asked.negative_prompt, [one.negative_prompt for one in styles], "negative_prompt"
        ),
    }
    if asked.custom_prompt is not None and asked.prompt == asked.custom_prompt:
        said["prompt"] = said["custom_prompt"]
    hires = {} if asked.hires is None else {
        "prompt": asked.hires.prompt, "negative_prompt": asked.hires.negative_prompt
    }  # fmt: skip
    lines = await _lines_named_in(repository, [*said.values(), *hires.values()])
    changes: dict[str, object] = {"styles": []}
    if lines:
        seed = draw_seed() if asked.seed is None else asked.seed
        said = {name: _drawn(text, lines, seed, name) for name, text in said.items()}
        if "prompt" in said and "custom_prompt" in said:
            said["prompt"] = said["custom_prompt"]
        hires = {name: _drawn(text, lines, seed, f"hires.{name}") for name, text in hires.items()}
        changes["seed"] = seed
    if asked.hires is not None:
        changes["hires"] = asked.hires.model_copy(update=hires)
    return asked.model_copy(update={**said, **changes})


def written_words(written: GenerateIn, drawn: GenerateIn) -> dict[str, Any] | None:
    """The words and styles of `written`, where other words were made of them; an avatar's part
    is not among them."""
    words = {name: getattr(written, name) or "" for name in ("prompt", "negative_prompt")}
    if written.custom_prompt is not None:
        words["prompt"] = written.custom_prompt
    prompt = drawn.prompt if drawn.custom_prompt is None else drawn.custom_prompt
    said = {"prompt": prompt or "", "negative_prompt": drawn.negative_prompt}
    if not written.styles and words == said:
        return None
    return {**words, "styles": list(written.styles)}


def _styled(text: str | None, styles: Sequence[str], field: str) -> str | None:
    """`text` with each style around it, one after the other.

    Raises:
        InvalidRequest: it would be too long.
    """
    for style in styles:
        places = style.count(_PLACE)
        if len(style) + places * len(text or "") > 2 * PROMPT_MAX_CHARS:
            raise InvalidRequest(
                f"{field}: too long with its styles: at most {PROMPT_MAX_CHARS} characters",
                details={"field": field, "maximum": PROMPT_MAX_CHARS},
            )
        if _PLACE in style:
            text = style.replace(_PLACE, text or "")
        elif style.strip():
            text = ", ".join(part for part in ((text or "").strip(), style.strip()) if part)
    return text


async def _lines_named_in(
    repository: WordsRepository, texts: Sequence[str | None]
) -> dict[str, list[str]]:
    """The wildcards that texts name, and those that their lines name."""
    found: dict[str, list[str]] = {}
    wanted = {name.lower() for text in texts for name in _MARK.findall(text or "")}
    for _ in range(_DEEPEST):
        new = await repository.lines_of(wanted - found.keys()) if wanted - found.keys() else {}
        if not new:
            break
        found |= new
        wanted = {name.lower() for lines in new.values() for one in lines
                  for name in _MARK.findall(one)}  # fmt: skip
    return found


def _drawn(text: str | None, lines: dict[str, list[str]], seed: int, field: str) -> str | None:
    """`text` with a line for each wildcard: by the seed, the field and its number in the text."""
    if text is None:
        return None
    number = 0

    def line(match: re.Match[str], depth: int) -> str:
        nonlocal number
        name = match[1].lower()
        if name not in lines:
            return match[0]
        number += 1
        if number > _MOST_DRAWN or depth > _DEEPEST:
            raise InvalidRequest(
                f"{field}: its wildcards name more than {_MOST_DRAWN} others, or one another "
                f"more than {_DEEPEST} deep",
                details={"field": field},
            )
        digest = hashlib.sha256(f"{seed}|{field}|{number}|{name}".encode()).digest()
        chosen = lines[name][int.from_bytes(digest[:8], "big") % len(lines[name])]
        return _MARK.sub(lambda inner: line(inner, depth + 1), chosen)

    return _MARK.sub(lambda match: line(match, 1), text)
