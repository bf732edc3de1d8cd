"""Requests for the same LoRAs meet in one worker's memory: one rule for every way of routing.

Duty: a request's key, and each key's order of preference over workers. The backend sends the key
as a header that an edge can route by; Ray's router follows the same order.
Must not know: HTTP, Modal, Ray, how many requests a worker has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sdxl_contract.request import GenerateRequest
from sdxl_contract.routing.object_key import object_key

# Modal's edge sends requests with one value of it to one container, as long as that has room.
AFFINITY_HEADER = "Modal-Session-ID"


def lora_key(request: GenerateRequest) -> str | None:
    """What decides where a request goes: the set of its LoRAs, whatever their order, scales and
    signatures; None where it has none."""
    names = sorted({ref.sha256 or object_key(ref.url) for ref in request.lora_refs()})
    return "\n".join(names) or None


def session_id(request: GenerateRequest) -> str | None:
    """`lora_key` as a header's value: short, and without what a URL may tell."""
    key = lora_key(request)
    return None if key is None else hashlib.sha256(key.encode()).hexdigest()[:32]


def preference(key: str, workers: Sequence[str]) -> list[str]:
    """`workers` in the order that `key` prefers them: rendezvous (highest random weight), so that
    one that comes or goes moves only its own share."""

    def weight(worker: str) -> bytes:
        return hashlib.blake2b(f"{key}\n{worker}".encode(), digest_size=8).digest()

    return sorted(workers, key=weight, reverse=True)
