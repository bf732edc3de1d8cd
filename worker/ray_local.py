"""Ray that keeps to this computer: 127.0.0.1 only, a token for whoever calls, no reports of use.

Duty: what Ray has no setting for. Holds for the pinned version; the test of `ray_app.py` looks at
every listening port and fails where a new version opens another.
Must not know: what runs on Ray.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

import ray
from ray._private import ray_constants


def keep_to_loopback() -> None:
    """Before `ray.init`: make the Ray that this process is about to start keep to itself."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Whoever reaches one of Ray's ports may run code: other users of this computer may not. Where
    # there is a token, Ray asks for it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray turns 127.0.0.1 into the network's address, except where it knows no clusters.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def on_loopback() -> bool:
    """Whether the Ray that this process is part of keeps to 127.0.0.1."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address == "127.0.0.1"


def keep_replica_to_loopback() -> None:
    """In a replica's `__init__`: open its own port, which Serve opens to every network, as Ray
    opens the others. Calls come through Ray, not through that port."""
    if not on_loopback():
        return
    from ray.serve._private import replica

    module: Any = replica
    opened = module.add_port_to_grpc_server

    def open_local(server: object, address: str) -> int:
        port: int = opened(server, address.replace("[::]", "127.0.0.1"))
        return port

    module.add_port_to_grpc_server = open_local
