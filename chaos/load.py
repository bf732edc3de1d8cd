"""Clients that ask until they have an answer, and the trouble that is made meanwhile.

Every job has an Idempotency-Key, so that asking again after a lost answer is safe; the key's
content is what counts as accepted.
Must not know: what must come of it.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable

import httpx2

from chaos.balance import UNFINISHED, count
from chaos.scene import LEASE_SECONDS, Scene
from testkit.loras.plain_bytes import kohya_lora

_ASK_AGAIN_SECONDS = 0.3


class Load:
    """Jobs, sent to both backends; `accepted` maps each key to its content."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._random = random.Random(seed)
        self.accepted: dict[str, uuid.UUID] = {}
        self.refusals: Counter[str] = Counter()
        self.twice: list[str] = []  # keys that gave two contents

    async def upload_lora(self) -> str:
        """A LoRA in the library; its id."""
        async with httpx2.AsyncClient(timeout=30) as http:
            answer = await http.post(
                f"{self._scene.backend_url(0)}/api/v1/loras/models/upload",
                files={"file": ("small.safetensors", kohya_lora())},
                data={"name": "small"},
            )
            answer.raise_for_status()
            return str(answer.json()["id"])

    async def ask(self, count: int, lora_id: str, clients: int = 8, pause: float = 0.0) -> None:
        """Have `count` jobs accepted, a third of them with the LoRA."""
        numbers = iter(range(count))
        async with httpx2.AsyncClient(timeout=10) as http:

            async def client() -> None:
                for _ in numbers:
                    await self._ask_one(http, lora_id)
                    await asyncio.sleep(self._random.uniform(0, 2 * pause))

            await asyncio.gather(*(client() for _ in range(clients)))

    async def _ask_one(self, http: httpx2.AsyncClient, lora_id: str) -> None:
        key = str(uuid.UUID(int=self._random.getrandbits(128)))
        body: dict[str, object] = {"prompt": f"picture {key}"}
        if self._random.random() < 1 / 3:
            body["loras"] = [{"lora_model_id": lora_id, "scale": 0.8}]
        headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
        again = self._random.random() < 1 / 4
        while True:
            place = self._scene.backend_url(self._random.randrange(2))
            try:
                answer = await http.post(
                    f"{place}/api/v1/content/generate", json=body, headers=headers
                )
                if answer.status_code in (200, 202):
                    content_id = uuid.UUID(answer.json()["id"])
                    if self.accepted.setdefault(key, content_id) != content_id:
                        self.twice.append(key)
                    if not again:
                        return
                    again = False
                    continue  # as a client that lost this answer would
                if answer.status_code < 500:
                    raise AssertionError(f"{answer.status_code}: {answer.text[:300]}")
                self.refusals[str(answer.status_code)] += 1
            except httpx2.HTTPError as error:
                self.refusals[type(error).__name__] += 1
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    def wait_until_all_ended(self, seconds: float) -> bool:
        """Whether every content ends within so long."""
        conninfo = self._scene.environment["DATABASE_URL"]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if count(conninfo, UNFINISHED) == 0:
                return True
            time.sleep(0.3)
        return False


class Trouble:
    """One kind of trouble after another; `made` counts them.

    Args:
        outage_seconds: how long the worker, the store and the database are away where they are for
            long; 0 leaves these outages out.
    """

    def __init__(self, scene: Scene, seed: int, outage_seconds: float = 0.0) -> None:
        self._scene = scene
        self._random = random.Random(seed)
        self._outage_seconds = outage_seconds
        self.made: Counter[str] = Counter()
        self._kinds: dict[str, Callable[[], None]] = {
            "backend killed": self.kill_backend,
            "backend frozen past its lease": self.freeze_backend,
            "worker killed": self.kill_worker,
            "worker frozen": self.freeze_worker,
            "S3 server away": self.s3_away,
            "PostgreSQL crashed": self.crash_postgres,
        }
        if outage_seconds:
            self._kinds |= {
                "worker away for long": self.worker_away_for_long,
                "S3 server away for long": self.s3_away_for_long,
                "PostgreSQL away for long": self.postgres_away_for_long,
            }

    def kill_backend(self) -> None:
        """kill -9 of one of the two."""
        backend = self._random.choice(self._scene.backends)
        self._scene.restart(backend, self._random.uniform(0, 2))

    def freeze_backend(self) -> None:
        """SIGSTOP until the other one has taken its jobs over, then SIGCONT."""
        backend = self._random.choice(self._scene.backends)
        self._scene.freeze(backend)
        time.sleep(2 * LEASE_SECONDS + self._random.uniform(0, 2))
        self._scene.thaw(backend)

    def kill_worker(self) -> None:
        """It forgets what it ran and what it had done."""
        self._scene.restart(self._scene.worker, self._random.uniform(0, 1))

    def freeze_worker(self) -> None:
        """It stalls and goes on."""
        self._scene.freeze(self._scene.worker)
        time.sleep(self._random.uniform(1, 4))
        self._scene.thaw(self._scene.worker)

    def s3_away(self) -> None:
        """Nothing can be stored or fetched for a while."""
        self._scene.restart(self._scene.s3, self._random.uniform(0.5, 3))

    def crash_postgres(self) -> None:
        """Every connection breaks; what was committed is there again afterwards."""
        self._scene.crash_postgres(self._random.uniform(0.5, 2))

    def worker_away_for_long(self) -> None:
        """Longer than any call to it is tried; a backend is killed and started meanwhile."""
        self._scene.kill(self._scene.worker)
        time.sleep(self._outage_seconds / 2)
        self._scene.restart(self._random.choice(self._scene.backends))
        time.sleep(self._outage_seconds / 2)
        self._scene.start_again(self._scene.worker)

    def s3_away_for_long(self) -> None:
        """Longer than any call to it is tried."""
        self._scene.restart(self._scene.s3, self._outage_seconds)

    def postgres_away_for_long(self) -> None:
        """Longer than anybody waits for a connection."""
        self._scene.crash_postgres(self._outage_seconds)

    @property
    def kinds(self) -> list[str]:
        """What it can make."""
        return list(self._kinds)

    def make(self, kind: str) -> None:
        """One of a kind."""
        self._kinds[kind]()
        self.made[kind] += 1

    def go_on(self, until: Callable[[], bool], pause: float) -> None:
        """Each kind once in random order, then again, until told to end."""
        while not until():
            kinds = list(self._kinds)
            self._random.shuffle(kinds)
            for kind in kinds:
                if until():
                    return
                self.make(kind)
                time.sleep(self._random.uniform(0, 2 * pause))
