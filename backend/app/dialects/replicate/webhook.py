"""Messages to the URLs that predictions name: the prediction, signed as a Standard Webhook."""

from __future__ import annotations

import json
import uuid

from app.core.db import Database
from app.core.settings import Settings
from app.dialects.replicate.shown import prediction
from app.services.calls.calls import called
from app.services.storage import Storage
from app.services.webhooks.signing import Headers, standard_headers


class PredictionMessages:
    """How messages of Replicate's kind look."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage

    async def body(self, owner: str, content_id: uuid.UUID) -> bytes | None:
        """The prediction as it is now."""
        found = await called(self._database, owner, content_id)
        if found is None:
            return None
        seconds = self._settings.image_url_seconds
        shown = prediction(found, self._storage, seconds, self._settings.base_url)
        return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()

    def headers(
        self,
        secret: str,
        owner: str,
        content_id: uuid.UUID,
        message_id: str,
        moment: int,
        body: bytes,
    ) -> Headers:
        """Those of a Standard Webhook."""
        return standard_headers([secret], message_id, moment, body)
