"""Textual inversions: kept for each owner, and found in the words of a request.

Duty: what is kept was read, is there once per owner under a word of its own; a request's words →
the embeddings that its worker fetches. Must not know: HTTP, jobs.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.core.errors import Conflict, NotFound, TooLarge
from app.core.pools import Duty, in_pool
from app.models import Avatar, Embedding
from app.models.base import utc_now
from app.repositories.inputs.embeddings import EmbeddingRepository
from app.repositories.loras import LoraRepository
from app.repositories.upkeep.takedowns import TakedownRepository
from app.schemas.content import GenerateIn
from app.services.storage import Storage
from app.services.upkeep.sweep import remove_or_leave
from app.services.worker.base_model import BaseModel
from sdxl_contract.errors import InvalidRequest, LoraLoadFailed
from sdxl_contract.limits import EMBEDDING_MAX_BYTES, MAX_EMBEDDINGS
from sdxl_contract.prompts.embedding_file import count_vectors
from sdxl_contract.prompts.words import PromptSyntax, Token, names

_MOST_KEPT = 500  # for each owner
_TOKEN = TypeAdapter[str](Token)


class UploadedEmbedding(NamedTuple):
    """An embedding, and whether this call brought it."""

    embedding: Embedding
    is_new: bool


class EmbeddingService:
    """Every owner's own."""

    def __init__(self, database: Database, storage: Storage, base_model: BaseModel) -> None:
        self._database = database
        self._storage = storage
        self._base_model = base_model

    async def upload(self, owner: str, data: bytes, name: str) -> UploadedEmbedding:
        """Take a file in under the word `name`; the same bytes again give the one that is there.

        Raises:
            InvalidRequest: the name cannot be a prompt's word.
            LoraLoadFailed: the file is no embedding for the base model, or was taken down.
            Conflict: another embedding has the name, or there are too many.
            TooLarge, StorageFailed: it cannot be kept.
        """
        if len(data) > EMBEDDING_MAX_BYTES:
            raise TooLarge(
                f"The file has {len(data)} bytes: an embedding may have at most "
                f"{EMBEDDING_MAX_BYTES}.",
                field="file",
                details={"maximum": EMBEDDING_MAX_BYTES},
            )
        signature = await self._base_model.signature()
        widths = None if signature is None else signature.text_encoder_hidden_sizes
        vectors = await in_pool(Duty.FOREIGN, count_vectors, data, widths, "file")
        _check_word(name)
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"owners/{owner}/embeddings/{sha256}.safetensors"
        async with self._database.session() as session:
            if await TakedownRepository(session).blocked([sha256]):
                raise LoraLoadFailed(
                    "This embedding was taken down and cannot be used here.",
                    details={"reason": "taken_down"},
                )
            repository, turns = EmbeddingRepository(session, owner), LoraRepository(session, owner)
            # Two uploads of the same bytes, or one and a deletion, share the object: take turns.
            await turns.hold(key)
            there = await repository.by_sha256(sha256)
            if there is not None:
                return UploadedEmbedding(there, is_new=False)
            await turns.hold(f"owners/{owner}/embedding-names")
            words = {one.name.casefold() for one in await repository.list()}
            if name.casefold() in words:
                raise Conflict(
                    "Another embedding has this name.",
                    field="name",
                    details={"reason": "name_taken"},
                )
            if len(words) >= _MOST_KEPT:
                raise Conflict(f"There are {_MOST_KEPT} embeddings already: delete one first.")
            await self._storage.put(key, data)
            embedding = Embedding(
                id=uuid.uuid4(),
                owner=owner,
                name=name,
                sha256=sha256,
                size_bytes=len(data),
                object_key=key,
                vectors=vectors,
                created_at=utc_now(),
            )
            await repository.add(embedding)
        return UploadedEmbedding(embedding, is_new=True)

    async def list(self, owner: str) -> Sequence[Embedding]:
        """All of an owner's, by name."""
        async with self._database.session() as session:
            return await EmbeddingRepository(session, owner).list()

    async def get(self, owner: str, embedding_id: uuid.UUID) -> Embedding:
        """One.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            embedding = await EmbeddingRepository(session, owner).get(embedding_id)
        if embedding is None:
            raise NotFound("There is no embedding with this id.")
        return embedding

    async def delete(self, owner: str, embedding_id: uuid.UUID) -> None:
        """Remove one that no waiting content is drawn with.

        Raises:
            NotFound: there is none, or it is another owner's.
            Conflict: a content waits for it.
        """
        async with self._database.session() as session:
            repository = EmbeddingRepository(session, owner)
            embedding = await repository.get(embedding_id, lock=True)
            if embedding is None:
                raise NotFound("There is no embedding with this id.")
            waiting = await repository.waiting(embedding_id)
            if waiting:
                raise Conflict(
                    f"{waiting} waiting contents are still to be drawn with this embedding.",
                    details={"reason": "in_use", "contents": waiting},
                )
            key = embedding.object_key
            await repository.delete(embedding)
        await remove_or_leave(self._database, self._storage, key)


def _check_word(name: str) -> None:
    try:
        _TOKEN.validate_python(name)
    except ValidationError:
        raise InvalidRequest(
            "name: must be a word of a prompt: at most 64 letters, digits, and . + _ - between "
            "them",
            details={"field": "name"},
        ) from None


async def find_embeddings(
    session: AsyncSession, owner: str, asked: GenerateIn, avatar: Avatar | None
) -> list[dict[str, Any]]:
    """What a content keeps of the embeddings that it is drawn with: id, word and hash.

    They are those that `asked` names. Where it says nothing of them and its words are read as
    A1111 reads them, they are those whose names stand in its prompts, as A1111 has it.

    Raises:
        NotFound: one is not there, or is another owner's.
        InvalidRequest: a word stands in no prompt, two have the same, or there are too many.
    """
    texts = _texts(asked, avatar)
    if "embeddings" not in asked.model_fields_set:
        if asked.prompt_syntax is not PromptSyntax.A1111 or asked.upscale is not None:
            return []
        usable = await EmbeddingRepository(session, owner).usable()
        found = [(one, one.name) for one in usable if _stands_in(one.name, texts)]
    else:
        found = await _named(session, owner, asked, texts) if asked.embeddings else []
    if len(found) > MAX_EMBEDDINGS:
        raise InvalidRequest(
            f"embeddings: the prompts have the words of {len(found)}: at most {MAX_EMBEDDINGS}",
            details={"field": "embeddings", "maximum": MAX_EMBEDDINGS},
        )
    return [
        {"embedding_id": str(one.id), "token": token, "sha256": one.sha256} for one, token in found
    ]


async def _named(
    session: AsyncSession, owner: str, asked: GenerateIn, texts: Sequence[str]
) -> list[tuple[Embedding, str]]:
    usable = await EmbeddingRepository(session, owner).usable()
    by_id = {one.id: one for one in usable}
    by_name = {one.name.casefold(): one for one in usable}
    found: list[tuple[Embedding, str]] = []
    for place, use in enumerate(asked.embeddings):
        field = f"embeddings[{place}]"
        if use.embedding_id is not None:
            embedding, named = by_id.get(use.embedding_id), "embedding_id"
        else:
            embedding, named = by_name.get((use.name or "").casefold()), "name"
        if embedding is None:
            what = "id" if named == "embedding_id" else "name"
            raise NotFound(f"There is no embedding with this {what}.", field=f"{field}.{named}")
        token = use.word or embedding.name
        if any(token.casefold() == other.casefold() for _, other in found):
            raise InvalidRequest(f"{field}: {token!r} is named twice", details={"field": field})
        if asked.upscale is None and not _stands_in(token, texts):
            raise InvalidRequest(
                f"{field}: {token!r} stands in no prompt", details={"field": field}
            )
        found.append((embedding, token))
    return found


def _texts(asked: GenerateIn, avatar: Avatar | None) -> list[str]:
    """Every text that will be read: the avatar's part, and a second pass's own."""
    hires = asked.hires
    texts = [asked.prompt, asked.custom_prompt, asked.negative_prompt]
    if avatar is not None:
        texts += [avatar.base_prompt, avatar.negative_prompt]
    if hires is not None:
        texts += [hires.prompt, hires.negative_prompt]
    return [text for text in texts if text]


def _stands_in(word: str, texts: Iterable[str]) -> bool:
    return any(names(word, text) for text in texts)


async def check_there(
    session: AsyncSession, owner: str, parameters: Mapping[str, Any]
) -> dict[uuid.UUID, Embedding]:
    """The embeddings that a content keeps, by id.

    Raises:
        Conflict: one was deleted or taken down since; the message has its word.
    """
    kept = parameters.get("embeddings") or []
    ids = [uuid.UUID(one["embedding_id"]) for one in kept]
    found = await EmbeddingRepository(session, owner).get_many(ids) if ids else {}
    for embedding_id, one in zip(ids, kept, strict=True):
        if embedding_id not in found:
            raise Conflict(
                f"The embedding {one['token']!r} of this content was deleted.",
                details={"reason": "embedding_deleted", "name": one["token"]},
            )
    return found
