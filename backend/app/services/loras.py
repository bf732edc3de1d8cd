"""The LoRA library: taking files in, and letting them go.

Duty: what is kept has been read (its header), fits the base model, and is there once per owner.
Must not know: HTTP, how bytes are stored.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import IO, NamedTuple

from app.core.db import Database
from app.core.errors import Conflict, NotFound, TooLarge
from app.core.pools import Duty, in_pool
from app.models import LoraModel
from app.models.base import utc_now
from app.repositories.loras import LoraRepository
from app.repositories.upkeep.takedowns import TakedownRepository
from app.schemas.loras import LoraPatch
from app.services.collection import check_cover
from app.services.foreign.loras import inspect_foreign
from app.services.lora_names import free_name
from app.services.storage import Storage
from app.services.upkeep.sweep import remove_or_leave
from app.services.worker.base_model import BaseModel
from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.lora.header import LoraInspection

_READ_BYTES = 1 << 20


class Uploaded(NamedTuple):
    """A LoRA, and whether this call brought it."""

    lora: LoraModel
    is_new: bool


class LoraService:
    """One library per owner."""

    def __init__(
        self, database: Database, storage: Storage, base_model: BaseModel, max_bytes: int
    ) -> None:
        self._database = database
        self._storage = storage
        self._base_model = base_model
        self._max_bytes = max_bytes

    async def upload(
        self, owner: str, file: IO[bytes], *, name: str, description: str, tags: Sequence[str]
    ) -> Uploaded:
        """Take `file` in; the same bytes again give the LoRA that is there.

        A name that another of the owner's LoRAs has gets a number behind it.

        Raises:
            LoraLoadFailed: the file is no LoRA for the base model; says what it seems to be.
            TooLarge, StorageFailed: it cannot be kept.
        """
        sha256, size = await in_pool(Duty.UPLOADS, _measure, file)
        async with self._database.session() as session:
            if await TakedownRepository(session).blocked([sha256]):
                raise LoraLoadFailed(
                    "This LoRA was taken down and cannot be used here.",
                    details={"reason": "taken_down"},
                )
        limits = self._base_model.limits
        maximum = self._max_bytes if limits is None else min(self._max_bytes, limits.lora_max_bytes)
        if size > maximum:
            raise TooLarge(
                f"The file has {size} bytes: a LoRA may have at most {maximum}.",
                field="file",
                details={"maximum": maximum},
            )
        there = await self._by_sha256(owner, sha256)
        if there is not None:
            return Uploaded(there, is_new=False)
        signature = await self._base_model.signature()
        inspection = await inspect_foreign(file, size, signature)
        key = f"owners/{owner}/loras/{sha256}.safetensors"
        lora = _row(owner, name, description, list(tags), sha256, size, key, inspection)
        async with self._database.session() as session:
            repository = LoraRepository(session, owner)
            # Two uploads of the same bytes, or one and a deletion, share the object: take turns.
            await repository.hold(key)
            there = await repository.by_sha256(sha256)
            if there is not None:
                return Uploaded(there, is_new=False)
            file.seek(0)
            await self._storage.put(key, file)
            await repository.hold_names()
            lora.name = free_name(lora.name, (await repository.names()).values())
            await repository.add(lora)
        return Uploaded(lora, is_new=True)

    async def _by_sha256(self, owner: str, sha256: str) -> LoraModel | None:
        async with self._database.session() as session:
            return await LoraRepository(session, owner).by_sha256(sha256)

    async def list(self, owner: str) -> Sequence[LoraModel]:
        """All of an owner's, newest first."""
        async with self._database.snapshot() as session:
            return await LoraRepository(session, owner).list()

    async def get(self, owner: str, lora_id: uuid.UUID) -> LoraModel:
        """One.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.snapshot() as session:
            lora = await LoraRepository(session, owner).get(lora_id)
        if lora is None:
            raise NotFound("There is no LoRA with this id.")
        return lora

    async def change(self, owner: str, lora_id: uuid.UUID, asked: LoraPatch) -> LoraModel:
        """Change the fields that `asked` sets.

        Raises:
            NotFound: the LoRA or its new cover is not there.
            Conflict: another one has the new name.
        """
        changes = asked.model_dump(exclude_unset=True)
        async with self._database.session() as session:
            repository = LoraRepository(session, owner)
            await repository.hold_names()
            lora = await repository.get(lora_id, lock=True)
            if lora is None:
                raise NotFound("There is no LoRA with this id.")
            names = await repository.names()
            if changes.get("name") in {names[other] for other in names if other != lora_id}:
                raise Conflict(
                    "Another LoRA has this name.", field="name", details={"reason": "name_taken"}
                )
            await check_cover(session, owner, changes.get("cover_image_id"))
            for field, value in changes.items():
                setattr(lora, field, value)
            await session.flush()
            await session.refresh(lora, ["cover"])
        return lora

    async def delete(self, owner: str, lora_id: uuid.UUID) -> None:
        """Remove a LoRA that nothing needs any more; finished contents don't need it.

        Raises:
            NotFound: there is none, or it is another owner's.
            Conflict: an avatar or a waiting content still names it.
        """
        async with self._database.session() as session:
            repository = LoraRepository(session, owner)
            lora = await repository.get(lora_id, lock=True)
            if lora is None:
                raise NotFound("There is no LoRA with this id.")
            avatars, contents = await repository.users(lora_id)
            if avatars or contents:
                raise Conflict(
                    f"{avatars} avatars and {contents} waiting contents still use this LoRA.",
                    details={"reason": "in_use", "avatars": avatars, "contents": contents},
                )
            await repository.delete(lora)
        await remove_or_leave(self._database, self._storage, lora.object_key)


def _measure(file: IO[bytes]) -> tuple[str, int]:
    """(SHA-256, bytes) of all of `file`."""
    file.seek(0)
    digest = hashlib.sha256()
    size = 0
    while block := file.read(_READ_BYTES):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _row(
    owner: str,
    name: str,
    description: str,
    tags: list[str],
    sha256: str,
    size: int,
    key: str,
    inspection: LoraInspection,
) -> LoraModel:
    return LoraModel(
        id=uuid.uuid4(),
        owner=owner,
        name=name,
        description=description,
        tags=tags,
        sha256=sha256,
        size_bytes=size,
        object_key=key,
        base_model=inspection.base_model,
        algorithm=inspection.algorithm,
        format=inspection.format,
        rank=inspection.rank,
        modules=inspection.modules,
        text_encoder=inspection.text_encoder,
        trigger_words=[_clean(word) for word in inspection.trigger_words],
        strays=[_clean(key) for key in inspection.strays[:100]],
        parameter_count=inspection.parameters,
        dtype=inspection.dtype,
        file_metadata={_clean(k): _clean(v) for k, v in inspection.metadata.items()},
        default_scale=1.0,
        cover=None,
        created_at=utc_now(),
    )


def _clean(text: str) -> str:
    """`text` from an untrusted file, as the database can hold it."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
