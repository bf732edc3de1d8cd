"""What attempts write and read, also where the database is away for a moment: it is asked again.

Must not know: how an attempt goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from app.core.db import DATABASE_LOST, Database
from app.models import Content, GenerationRecord, Image
from app.models.base import utc_now
from app.models.takedown import shape_of
from app.repositories.attempts import AttemptRepository, Holds
from app.services.inputs.likeness import telling
from app.services.inputs.using import pictures_in
from sdxl_contract.errors import ContentRefused

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 3.0
T = TypeVar("T")


def is_late(content: Content) -> bool:
    """Whether a content's deadline has passed."""
    return content.deadline_at is not None and utc_now() >= content.deadline_at


class Ledger:
    """The attempts' rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask(
        self,
        step: Callable[[AttemptRepository], Awaitable[T]],
        is_over: Callable[[], bool] = lambda: False,
    ) -> T:
        """What the database answers; one that is away is asked again until `is_over`."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                async with self._database.direct() as connection:
                    return await step(AttemptRepository(connection))
            except DATABASE_LOST:
                if is_over():
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def finish(
        self,
        content: Content,
        values: Mapping[str, Any],
        images: Sequence[Image] = (),
        record: GenerationRecord | None = None,
    ) -> bool:
        """Write the end; False where the content is not this attempt's any more."""
        is_first = True

        async def write(repository: AttemptRepository) -> bool:
            nonlocal is_first
            if not is_first:  # it may be written, and only the answer be lost
                holds = await repository.holds(content.id, content.attempt)
                if holds is not Holds.HELD and holds is not Holds.UNWANTED:
                    return holds is Holds.WRITTEN
            is_first = False
            return await repository.finish(content.id, content.attempt, values, images, record)

        return await self.ask(write, lambda: is_late(content))

    async def refuse_taken_down(self, content: Content, images: Sequence[Image]) -> None:
        """Asked at the last moment, so that hardly an order comes between this and the end.

        Raises:
            ContentRefused: an order names one of these pictures, one that is nearly the same, or
                what they were drawn from, be it a picture, a LoRA or an embedding.
        """
        sources = [use["sha256"] for use in pictures_in(content.parameters).values()]
        hashes = [*(image.sha256 for image in images), *sources]
        embeddings = content.parameters.get("embeddings") or ()
        weights = [one["sha256"] for one in (*content.loras, *embeddings)]
        seen = [
            (one, shape_of(image.width, image.height))
            for image in images
            if (one := telling(image.likeness)) is not None
        ]
        if await self.ask(
            lambda repository: repository.are_taken_down(hashes, seen, weights),
            lambda: is_late(content),
        ):
            raise ContentRefused(
                "what was drawn, or what it was drawn from, was taken down by the operator, "
                "or is nearly the same",
                details={"reason": "taken_down"},
            )

    async def release(
        self,
        content: Content,
        costs: Mapping[str, Any],
        *,
        waits_for: dict[str, str] | None = None,
        retry_at: datetime | None = None,
        is_forgiven: bool = False,
        is_patient: bool = True,
    ) -> None:
        """Put it back into the queue, for whoever is next; see `AttemptRepository.release`."""
        await self.ask(
            lambda repository: repository.release(
                content.id,
                content.attempt,
                waiting_for=waits_for,
                retry_at=retry_at,
                is_forgiven=is_forgiven,
                costs=costs,
            ),
            lambda: not is_patient,
        )
