"""The short form of `make chaos`: every kind of trouble once, on two real backends that share a
PostgreSQL and a bucket; then the same without the fence, which the balance must find out.
"""

from __future__ import annotations

import asyncio
import threading
import uuid

import pytest

from app.services.storage import S3Storage
from chaos.balance import draw_up, install_audit
from chaos.load import Load, Trouble
from chaos.run import WEIGHTS, settle, wake_without_the_fence
from chaos.scene import Scene, scene

JOBS = 36


def chaos(running: Scene, load: Load, trouble: Trouble) -> None:
    """Ask for jobs while each kind of trouble happens once; return when all have ended."""
    lora_id = asyncio.run(load.upload_lora())
    accepting = threading.Thread(target=lambda: asyncio.run(load.ask(JOBS, lora_id, pause=0.4)))
    accepting.start()
    for kind in trouble.kinds:
        trouble.make(kind)
    accepting.join(60)
    assert load.wait_until_all_ended(60)


@pytest.mark.slow
@pytest.mark.long
def test_the_balance_holds_through_chaos_and_fails_without_the_fence() -> None:
    with scene(WEIGHTS, worker_seconds=0.3, seed=7) as running:
        conninfo = running.environment["DATABASE_URL"]
        install_audit(conninfo)
        load, trouble = Load(running, seed=7), Trouble(running, seed=7)
        chaos(running, load, trouble)
        balance = settle(running, load)
        assert balance.wrong == []
        assert load.twice == []
        assert balance.thumbnails > JOBS / 3
        assert balance.accepted == JOBS == balance.succeeded + balance.failed.total()
        assert balance.succeeded > 0.9 * JOBS, balance.shown()

        # What the balance would say if something were lost or left over.
        forgotten = load.accepted | {"lost": uuid.uuid4()}
        assert any("is gone" in wrong for wrong in draw_up(running.settings(), forgotten).wrong)
        store = S3Storage(running.settings())
        # A thumbnail: the smallest thing that may be missing.
        key = next(name for name in asyncio.run(keys_of(store)) if name.endswith(".webp"))
        asyncio.run(store.delete(key))
        lora = next(name for name in asyncio.run(keys_of(store)) if "/loras/" in name)
        asyncio.run(store.delete(lora))
        found = draw_up(running.settings(), load.accepted).wrong
        assert f"row of {key} has no object" in found
        assert f"row of {lora} has no object" in found

        unfenced = wake_without_the_fence(running, load)
        assert any("was changed again" in wrong for wrong in unfenced.wrong), unfenced.wrong


async def keys_of(store: S3Storage) -> list[str]:
    """What is stored."""
    return [stored.key async for page in store.objects("owners") for stored in page]
