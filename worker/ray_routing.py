"""Where a request goes among the replicas under Ray Serve: to the one that has its LoRAs.

Duty: Serve's router that follows the order of preference that every way of routing has
(`sdxl_contract/routing/affinity.py`).
Must not know: what a replica does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from sdxl_contract.errors import ContractError
from sdxl_contract.request import parse_request
from sdxl_contract.routing.affinity import lora_key, preference

_PREFERRED = 2  # replicas tried in a LoRA's own order; then whichever has room


@dataclass(frozen=True)
class Route:
    """Where a call wants to go: every method of the worker takes one first, for the router.

    Args:
        key: calls with one key prefer one replica; None: any of the least loaded.
        replica: this replica and no other, as long as it lives.
    """

    key: str | None = None
    replica: str | None = None


def request_key(body: bytes) -> str | None:
    """The key of the request in `body`; None where it has none, or is refused anyway."""
    try:
        return lora_key(parse_request(body))
    except ContractError:
        return None


class AffinityRouter(RequestRouter):
    """Ray Serve's choice of a replica, by the `Route` that is every call's first argument."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, the preferred first; Serve takes the first that has room."""
        if pending_request is None:
            return [candidate_replicas]
        # Without this Serve asks again at once, and spins while every replica is full.
        pending_request.routing_context.should_backoff = True
        route: Route = pending_request.args[0]
        by_id = {one.replica_id.unique_id: one for one in candidate_replicas}
        if route.replica in by_id:
            return [[by_id[route.replica]]]
        if route.key is None:
            # The less loaded of two at random.
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        order = [by_id[name] for name in preference(route.key, list(by_id))]
        return [*([one] for one in order[:_PREFERRED]), order[_PREFERRED:]]
