"""Messages to the URLs in `fal_webhook`: what the request gave, signed with ed25519 as fal does."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterable
from typing import Any

from app.core.db import Database
from app.core.settings import Settings
from app.dialects.asking import failure_of
from app.dialects.fal.shown import output
from app.models import Webhook
from app.services.calls.calls import called
from app.services.storage import Storage
from app.services.webhooks.signing import Headers, public_key, signed_by


class RequestMessages:
    """How messages of fal's kind look."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage

    async def body(self, owner: str, content_id: uuid.UUID) -> bytes | None:
        """The request's result, or why there is none."""
        found = await called(self._database, owner, content_id)
        if found is None:
            return None
        content, call = found
        failure = failure_of(content)
        message: dict[str, Any] = {
            "request_id": str(content.id),
            "gateway_request_id": str(content.id),
        }
        if failure is None:
            seconds = self._settings.image_url_seconds
            prompt = str(call.input.get("prompt", ""))
            payload = output(content, self._storage, seconds, prompt)
            message |= {"status": "OK", "payload": payload}
        else:
            message |= {
                "status": "ERROR",
                "error": failure.detail,
                "payload": {"detail": failure.detail},
            }
        return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()

    def headers(
        self,
        secret: str,
        owner: str,
        content_id: uuid.UUID,
        message_id: str,
        moment: int,
        body: bytes,
    ) -> Headers:
        """fal's four; the signature is over the other three and the body's SHA-256."""
        parts = (str(content_id), owner, str(moment), hashlib.sha256(body).hexdigest())
        return {
            "X-Fal-Webhook-Request-Id": parts[0],
            "X-Fal-Webhook-User-Id": parts[1],
            "X-Fal-Webhook-Timestamp": parts[2],
            "X-Fal-Webhook-Signature": signed_by(secret, "\n".join(parts).encode()).hex(),
        }


def key_set(signers: Iterable[Webhook]) -> dict[str, Any]:
    """The public keys (RFC 7517) that messages are checked with."""
    keys = []
    for signer in signers:
        key = base64.urlsafe_b64encode(public_key(signer.secret)).rstrip(b"=").decode()
        keys.append({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": str(signer.id), "x": key})
    return {"keys": keys}
