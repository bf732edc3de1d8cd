"""Pictures by URL: fetched at each call, for they are small and may have changed.

Must not know: HTTP's routes, dialects, where pictures are kept.
"""

from __future__ import annotations

from app.core.pools import Duty, in_pool
from app.services.calls.fetching import Fetcher
from app.services.outgoing import Outgoing
from sdxl_contract.errors import ImageDownloadFailed
from sdxl_contract.limits import IMAGE_MAX_BYTES

FETCH_SECONDS = 30.0


class PictureUrls:
    """Pictures by URL. `at_once`: how many may be on their way for one owner."""

    def __init__(self, outgoing: Outgoing, *, at_once: int, seconds: float = FETCH_SECONDS) -> None:
        self._files = Fetcher(
            outgoing,
            ImageDownloadFailed,
            "pictures",
            max_bytes=IMAGE_MAX_BYTES,
            at_once=at_once,
            seconds=seconds,
        )

    async def bytes_at(self, owner: str, url: str, field: str) -> bytes:
        """What is behind an https URL.

        Args:
            field: what the caller calls the URL; errors name it.

        Raises:
            InvalidRequest: it is no URL that may be asked.
            ImageDownloadFailed: its server does not give the file.
            RateLimited: the owner waits for enough files already.
        """
        self._files.check(url, field)
        with self._files.place(owner):
            fetched = await self._files.fetch(url, field)
            assert fetched is not None  # no version was named
            with fetched.file as file:

                def read() -> bytes:
                    file.seek(0)
                    return file.read()

                return await in_pool(Duty.UPLOADS, read)
