"""Webhooks while receivers fail, stall, are gone for a day or for good, and senders are killed.

`python -m chaos.webhooks --messages 10000` on a PostgreSQL of its own; time is a clock that jumps
to the next moment at which something is due. Afterwards: none lost, none forged, none to who is
gone. Last line: JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from standardwebhooks.webhooks import Webhook as Verifier

from app.core.db import Database, migrate
from app.core.embedded_postgres import EmbeddedPostgres
from app.core.settings import load_settings
from app.models.base import utc_now
from app.schemas.webhooks import WebhookIn
from app.services.outgoing import Outgoing
from app.services.storage import LocalStorage
from app.services.webhooks.sender import WebhookSender
from app.services.webhooks.service import WebhookService
from testkit.doubles.webhook_receiver import Answering, Message, WebhookReceiver, receiving

_KILL_EVERY_SECONDS = 0.7
# So many messages are let come due before the clock jumps. One at a time, of retries that are
# spread over hours, the sender would wait for each by itself.
_DUE_TOGETHER = 64
_LOOK_SECONDS = 0.02
_REFUSALS = 6
# Where nothing was sent for so long, something hangs that would never come to an end.
_HANGS_SECONDS = 60.0
_FIRST_DUE = """
    SELECT max(next_at) FROM (
        SELECT next_at FROM webhook_delivery WHERE state = 'waiting' ORDER BY next_at LIMIT :some
    ) first
"""
_STALL_SECONDS = 0.25
_END = """
    INSERT INTO generation (id, owner, status, attempt, prompt, negative_prompt, parameters, loras,
        request_sha256, created_at)
    SELECT gen_random_uuid(), 'local', 'running', 1, 'x', '', '{}', '[]', 'x', now()
    FROM generate_series(1, :count)
"""


class JumpingClock:
    """Now, plus every jump so far."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        """The time."""
        return utc_now() + self._ahead

    def jump_to(self, moment: datetime) -> None:
        """Go on at `moment`, if that is later."""
        self._ahead = max(self._ahead, moment - utc_now() + timedelta(milliseconds=1))


async def run(
    database: Database, storage: LocalStorage, messages: int, seed: int
) -> dict[str, Any]:
    """End `messages` / 5 contents, tell five receivers of each, and count what arrives."""
    chance, clock = random.Random(seed), JumpingClock()
    began, back_at = clock(), clock() + timedelta(days=1)
    seen: Counter[str] = Counter()

    refused: Counter[str] = Counter()

    def flaky(message: Message) -> int:
        # Not as often as a message is tried: one that is refused each time has rightly failed.
        if refused[message.id] >= _REFUSALS or chance.random() < 0.6:
            return 200
        refused[message.id] += 1
        return 503

    def stalls_at_first(message: Message) -> int | None:
        seen[message.id] += 1
        return None if seen[message.id] == 1 and chance.random() < 0.05 else 200

    def back_after_a_day(_: Message) -> int:
        return 500 if clock() < back_at else 200

    answers: dict[str, Answering] = {
        "well": lambda _: 204,
        "flaky": flaky,
        "stalling": stalls_at_first,
        "back after a day": back_after_a_day,
        "gone": lambda _: 410,
    }
    outgoing = Outgoing(allow_loopback=True, attempt_seconds=_STALL_SECONDS)
    service = WebhookService(database, outgoing, lambda: None)
    async with contextlib.AsyncExitStack() as stack:
        receivers = {name: await stack.enter_async_context(receiving()) for name in answers}
        secrets: dict[str, str] = {}
        for name, receiver in receivers.items():
            receiver.answer = answers[name]
            webhook = await service.add("local", WebhookIn(url=receiver.url))
            secrets[name] = webhook.secret
        async with database.session() as session:
            await session.execute(text(_END), {"count": messages // len(receivers)})
        async with database.session() as session:
            await session.execute(
                text("UPDATE generation SET status = 'succeeded', finished_at = now()")
            )
        started = time.perf_counter()
        kills = await _work_off(database, storage, outgoing, clock)
        seconds = time.perf_counter() - started
        await outgoing.aclose()
        return await _balance(
            database,
            receivers,
            secrets,
            kills=kills,
            seconds=round(seconds, 1),
            days=round((clock() - began) / timedelta(days=1), 2),
        )


async def _work_off(
    database: Database, storage: LocalStorage, outgoing: Outgoing, clock: JumpingClock
) -> int:
    """Send until nothing waits; senders die on the way. Returns how often.

    Raises:
        RuntimeError: nothing is sent any more, although messages wait.
    """
    kills, tries, moved_at = 0, 0, time.monotonic()
    while (due := await _next_due(database)) is not None:
        so_far, tries = tries, await _tries(database)
        if tries > so_far:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > _HANGS_SECONDS:
            raise RuntimeError(f"nothing was sent for {_HANGS_SECONDS:g} s")
        clock.jump_to(due)
        sender = WebhookSender(database, storage, outgoing, 900, clock)
        sender.start()
        until = time.monotonic() + _KILL_EVERY_SECONDS
        while time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            if sender.is_sending:
                continue
            due = await _next_due(database)
            if due is None:
                break
            clock.jump_to(due)
            sender.wake()
        # As by kill -9: what was under way is neither ended nor given back.
        await sender.stop()
        kills += 1
    return kills


async def _next_due(database: Database) -> datetime | None:
    """When the first `_DUE_TOGETHER` of those that wait are due; None where none waits."""
    async with database.session() as session:
        moment: datetime | None = await session.scalar(text(_FIRST_DUE), {"some": _DUE_TOGETHER})
        return moment


async def _tries(database: Database) -> int:
    async with database.session() as session:
        return await session.scalar(text("SELECT count(*) FROM webhook_attempt")) or 0


async def _balance(
    database: Database,
    receivers: dict[str, WebhookReceiver],
    secrets: dict[str, str],
    **facts: Any,
) -> dict[str, Any]:
    async with database.session() as session:
        states = {
            (row.description, row.state): row.count
            for row in await session.execute(
                text(
                    "SELECT w.url AS description, d.state, count(*) FROM webhook_delivery d "
                    "JOIN webhook w ON w.id = d.webhook_id GROUP BY 1, 2"
                )
            )
        }
        contents = await session.scalar(text("SELECT count(*) FROM generation"))
    found: dict[str, Any] = {"contents": contents, **facts, "receivers": {}}
    for name, receiver in receivers.items():
        verifier = Verifier(secrets[name])
        for message in receiver.messages:
            _verify(verifier, message)
        ids = {message.id for message in receiver.messages}
        told = {message.json["data"]["id"] for message in receiver.messages}
        found["receivers"][name] = {
            "posts": len(receiver.messages),
            "messages": len(ids),
            "contents": len(told),
            "delivered": states.get((receiver.url, "delivered"), 0),
            "failed": states.get((receiver.url, "failed"), 0),
            "waiting": states.get((receiver.url, "waiting"), 0),
        }
    return found


def _verify(verifier: Verifier, message: Message) -> None:
    """Raises where the signature is not the webhook's: its own check of the time left out."""
    moment = datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), utc_now().tzinfo)
    signed = verifier.sign(message.id, moment, message.body.decode())
    assert signed in message.headers["webhook-signature"].split(" "), "a forged message"


async def _main(messages: int, seed: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="chaos-webhooks-"))
    server = EmbeddedPostgres(folder / "postgres")
    try:
        url = server.start().set(drivername="postgresql+psycopg")
        await asyncio.to_thread(migrate, url)
        database = Database(url)
        storage = LocalStorage(load_settings(data_dir=folder / "data"))
        try:
            return await run(database, storage, messages, seed)
        finally:
            await database.close()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run, print the balance, and fail where it does not come out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = asyncio.run(_main(options.messages, options.seed))
    wrong = faults_of(found)
    print("\n".join(wrong))
    print(json.dumps(found))
    return 1 if wrong else 0


def faults_of(found: dict[str, Any]) -> list[str]:
    """What is wrong with a balance; empty where nothing is."""
    wrong = []
    for name, told in found["receivers"].items():
        if told["waiting"]:
            wrong.append(f"{name}: {told['waiting']} messages still wait")
        if name == "gone":
            if told["delivered"]:
                wrong.append("gone: a message counts as delivered")
            continue
        wrong += [
            f"{name}: {told[what]} {what} of {found['contents']}"
            for what in ("messages", "contents", "delivered")
            if told[what] != found["contents"]
        ]
    return wrong


if __name__ == "__main__":
    sys.exit(main())
