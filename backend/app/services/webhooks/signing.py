"""Secrets and signatures of webhooks, as Standard Webhooks 1.0.0 has them.

Must not know: HTTP, the database.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.models.webhook import Signing

Headers = dict[str, str]
_SECRET_BYTES = 32
SYMMETRIC, PRIVATE, PUBLIC = "whsec_", "whsk_", "whpk_"


def new_secret(signing: Signing) -> str:
    """What messages are signed with: `whsec_…`, or of ed25519 the private key `whsk_…`."""
    if signing is Signing.HMAC:
        return SYMMETRIC + _text(secrets.token_bytes(_SECRET_BYTES))
    return PRIVATE + _text(Ed25519PrivateKey.generate().private_bytes_raw())


def shown_secret(secret: str) -> str:
    """What receivers check with: the secret itself, or the public key `whpk_…`."""
    if secret.startswith(SYMMETRIC):
        return secret
    return PUBLIC + _text(public_key(secret))


def signatures(secret_texts: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each secret, with blanks between."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(_sign(secret, signed) for secret in secret_texts)


def standard_headers(
    secret_texts: Sequence[str], message_id: str, timestamp: int, body: bytes
) -> Headers:
    """The three headers of a Standard Webhook."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures(secret_texts, message_id, timestamp, body),
    }


def signed_by(secret: str, data: bytes) -> bytes:
    """`data`'s ed25519 signature by the private key `whsk_…`."""
    return _private_key(secret).sign(data)


def public_key(secret: str) -> bytes:
    """The public key of the private key `whsk_…`."""
    return _private_key(secret).public_key().public_bytes_raw()


def _sign(secret: str, signed: bytes) -> str:
    if secret.startswith(SYMMETRIC):
        key = base64.b64decode(secret.removeprefix(SYMMETRIC))
        return f"v1,{_text(hmac.new(key, signed, hashlib.sha256).digest())}"
    return f"v1a,{_text(_private_key(secret).sign(signed))}"


def _private_key(secret: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(secret.removeprefix(PRIVATE)))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
