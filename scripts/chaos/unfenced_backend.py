"""A backend whose completions are not fenced: the control that the balance must find out.

Only the harness starts it. It takes the fence out of this one process, by replacing the
repository's conditional update with an unconditional one.
"""

from __future__ import annotations

import sys
import uuid
from typing import Any

from sqlalchemy import update

from app.models import Generation
from app.repositories.generations import JobRepository
from app.serve import main


async def _anyhow(
    self: JobRepository, content_id: uuid.UUID, _attempt: int, values: dict[str, Any]
) -> bool:
    await self._session.execute(
        update(Generation).where(Generation.id == content_id).values(values)
    )
    return True


if __name__ == "__main__":
    JobRepository._fenced = _anyhow  # type: ignore[method-assign, assignment]
    sys.exit(main())
