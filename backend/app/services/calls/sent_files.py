"""Files that are named first and brought afterwards, by whoever shows the name's token.

Must not know: HTTP's routes, dialects, what a file is.
"""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy.exc import IntegrityError

from app.core.db import Database
from app.core.errors import NotFound, RateLimited
from app.core.security import key_digest, same_digest
from app.models import SentFile
from app.models.base import utc_now
from app.repositories.calls.sent_files import SentFileRepository
from app.services.callers import is_key_required
from sdxl_contract.errors import Unauthorized

_TIME = timedelta(minutes=15)
_OPEN_MAX = 32
_RETRY_SECONDS = 5


class SentFiles:
    """Every owner's. `at_once`: how many may be on their way for one."""

    def __init__(self, database: Database, *, at_once: int) -> None:
        self._database = database
        self._at_once = at_once
        self._coming: Counter[str] = Counter()

    async def begin(self, owner: str, key_id: uuid.UUID | None, name: str) -> tuple[SentFile, str]:
        """A name for a file that is about to come, and the token that brings it.

        Raises:
            RateLimited: too many are open.
        """
        token = secrets.token_urlsafe(32)
        file = SentFile(
            id=uuid.uuid4(),
            owner=owner,
            key_id=key_id,
            token_sha256=key_digest(token),
            name=name,
            created_at=utc_now(),
        )
        async with self._database.session() as session:
            repository = SentFileRepository(session)
            await repository.forget_late(owner, utc_now() - _TIME)
            if await repository.count_open(owner) >= _OPEN_MAX:
                raise _too_many(f"{_OPEN_MAX} uploads are begun and not finished")
            await repository.add(file)
        return file, token

    async def expected(self, file_id: str, token: str) -> SentFile:
        """The file that `token` brings.

        Raises:
            Unauthorized: there is none, or no longer, or its sender's key was revoked.
        """
        file = None
        with contextlib.suppress(ValueError):
            async with self._database.session() as session:
                file = await SentFileRepository(session).with_valid_key(uuid.UUID(file_id))
        if (
            file is None
            or not same_digest(file.token_sha256, key_digest(token))
            or utc_now() - file.created_at > _TIME
            or (file.key_id is None and await is_key_required(self._database))
        ):
            raise Unauthorized("This upload URL is not valid any more: begin the upload again.")
        return file

    @contextlib.contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """One of the files that an owner may send at a time.

        Raises:
            RateLimited: there are enough already.
        """
        if self._coming[owner] >= self._at_once:
            raise _too_many(f"{self._at_once} files are on their way already")
        self._coming[owner] += 1
        try:
            yield
        finally:
            self._coming[owner] -= 1
            if not self._coming[owner]:
                del self._coming[owner]

    async def came(
        self,
        file: SentFile,
        *,
        image_id: uuid.UUID | None = None,
        lora_id: uuid.UUID | None = None,
    ) -> None:
        """Write what it is: from now on its name means that.

        Raises:
            NotFound: it was removed meanwhile.
        """
        try:
            async with self._database.session() as session:
                await SentFileRepository(session).came(file.id, image_id, lora_id)
        except IntegrityError:
            raise NotFound("The file was removed meanwhile.") from None

    async def get(self, owner: str, file_id: str, field: str) -> SentFile:
        """One that has come.

        Raises:
            NotFound: there is none, it has not come, or it is another owner's.
        """
        found = None
        with contextlib.suppress(ValueError):
            async with self._database.session() as session:
                found = await SentFileRepository(session).of_owner(owner, uuid.UUID(file_id))
        if found is None or not found.is_here:
            raise NotFound("There is no file at this URL.", field=field)
        return found


def _too_many(what: str) -> RateLimited:
    return RateLimited(
        f"{what}: wait until one has arrived.",
        free_at=utc_now() + timedelta(seconds=_RETRY_SECONDS),
        retry_after=_RETRY_SECONDS,
    )
