"""Webhooks against a real receiver, checked by an independent verifier."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import URL, text
from standardwebhooks.webhooks import Webhook as Verifier

from app.core.db import Database
from app.core.settings import Settings
from app.models.base import utc_now
from app.models.webhook import Signing
from app.services.outgoing import Outgoing, OutgoingFailed, UrlRefused
from app.services.storage import LocalStorage
from app.services.webhooks.schedule import PAUSES, is_given_up, next_attempt
from app.services.webhooks.signing import new_secret, shown_secret, signatures
from chaos import webhooks as chaos
from sdxl_contract.errors import GenerationFailed
from testkit.backend import Backend, StartBackend, add_key
from testkit.doubles.inference_double import InferenceDouble
from testkit.doubles.webhook_receiver import WebhookReceiver, receiving

HOOKS = "/api/v1/webhooks"


async def until(condition: Any, seconds: float = 15) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to pass")


async def hook(backend: Backend, receiver: WebhookReceiver, **fields: Any) -> dict[str, Any]:
    answer = await backend.http.post(HOOKS, json={"url": receiver.url, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_ends_are_told_signed_and_a_secret_can_be_made_anew(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    async with start_backend(webhook_allow_loopback=True) as backend, receiving() as receiver:
        made = await hook(backend, receiver, events=["content.succeeded", "content.failed"])
        content = await backend.generate(prompt="a secret garden")
        await until(lambda: len(receiver.messages) == 1)
        [message] = receiver.messages
        told = Verifier(made["secret"]).verify(message.body, message.headers)
        assert (told["type"], told["data"]["id"]) == ("content.succeeded", content["id"])
        assert told["data"]["images"][0]["sha256"] == content["images"][0]["sha256"]
        assert "secret garden" not in message.body.decode()
        assert len(message.body) < 20_000

        inference.failures = [GenerationFailed("not finite")]
        failed = await backend.generate()
        await until(lambda: len(receiver.messages) == 2)
        assert receiver.messages[1].json["data"]["error"] == failed["error"]

        renewed = (await backend.http.post(f"{HOOKS}/{made['id']}/rotate")).json()
        tested = await backend.http.post(f"{HOOKS}/{made['id']}/test")
        await until(lambda: len(receiver.messages) == 3)
        message = receiver.messages[2]
        for secret in (made["secret"], renewed["secret"]):
            assert Verifier(secret).verify(message.body, message.headers)["type"] == "webhook.test"
        with pytest.raises(Exception, match="signature"):
            Verifier(new_secret(Signing.HMAC)).verify(message.body, message.headers)
        assert message.id == f"msg_{tested.json()['id'].replace('-', '')}"
        # Never shown again.
        for path in (HOOKS, f"{HOOKS}/{made['id']}"):
            assert "whsec_" not in (await backend.http.get(path)).text


async def test_attempts_are_listed_a_message_is_sent_again_and_410_disables(
    start_backend: StartBackend,
) -> None:
    async with start_backend(webhook_allow_loopback=True) as backend, receiving() as receiver:
        made = await hook(backend, receiver)
        place = f"{HOOKS}/{made['id']}"
        receiver.answer = lambda _: 503
        receiver.headers = {"Retry-After": "7200", "Location": receiver.url}
        await backend.generate()

        async def first() -> dict[str, Any]:
            [delivery] = (await backend.http.get(f"{place}/deliveries")).json()["items"]
            answer = await backend.http.get(f"{place}/deliveries/{delivery['id']}")
            whole: dict[str, Any] = answer.json()
            return whole

        for _ in range(1000):
            delivery = await first()
            if delivery["log"]:
                break
            await asyncio.sleep(0.05)
        [attempt] = delivery["log"]
        assert (attempt["status"], attempt["head"], delivery["state"]) == (
            503, "status 503", "waiting",
        )  # fmt: skip
        wait = datetime.fromisoformat(delivery["next_at"]) - utc_now()
        assert timedelta(hours=1.9) < wait <= timedelta(hours=2)
        assert (await backend.http.get(place)).json()["failing_since"]

        receiver.answer = lambda _: 302
        again = f"{place}/deliveries/{delivery['id']}/resend"
        assert (await backend.http.post(again)).status_code == 202
        await until(lambda: len(receiver.messages) == 2)
        assert receiver.messages[0].id == receiver.messages[1].id
        await asyncio.sleep(0.3)
        assert len(receiver.messages) == 2  # where a redirection leads is not asked

        receiver.answer = lambda _: 410
        await backend.http.post(again)
        await until(lambda: len(receiver.messages) == 3)
        for _ in range(1000):
            shown = (await backend.http.get(place)).json()
            if not shown["enabled"]:
                break
            await asyncio.sleep(0.05)
        assert "410" in shown["disabled_reason"]
        assert (await first())["state"] == "failed"
        for path in (again, f"{place}/test"):
            assert (await backend.http.post(path)).status_code == 409
        await backend.generate()
        assert len((await backend.http.get(f"{place}/deliveries")).json()["items"]) == 1

        receiver.answer = lambda _: 200
        assert (await backend.http.patch(place, json={"enabled": True})).json()["enabled"]
        await backend.http.post(again)
        await until(lambda: len(receiver.messages) == 4)


async def test_an_end_written_while_its_message_is_sent_again_waits_and_does_not_deadlock(
    start_backend: StartBackend, database_url: URL
) -> None:
    libpq = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with (
        start_backend(webhook_allow_loopback=True) as backend,
        receiving() as receiver,
        await psycopg.AsyncConnection.connect(libpq, autocommit=True) as other,
        await psycopg.AsyncConnection.connect(libpq) as resender,
    ):
        receiver.answer = lambda _: 503
        made = await hook(backend, receiver)
        place = f"{HOOKS}/{made['id']}"
        delivery_id = (await backend.http.post(f"{place}/test")).json()["id"]
        await until(lambda: len(receiver.messages) == 1)

        await resender.execute("SELECT id FROM webhook FOR UPDATE")
        await other.execute("UPDATE webhook_delivery SET next_at = now()")  # due at once
        await until(lambda: len(receiver.messages) == 2)
        waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while not await (await other.execute(waits)).fetchall():
            await asyncio.sleep(0.02)
        await resender.execute("SELECT id FROM webhook_delivery FOR UPDATE")
        await resender.commit()

        async def attempts() -> list[int]:
            answer = await backend.http.get(f"{place}/deliveries/{delivery_id}")
            return [attempt["status"] for attempt in answer.json()["log"]]

        for _ in range(1000):
            if len(await attempts()) == 2:
                break
            await asyncio.sleep(0.05)
        assert await attempts() == [503, 503]


async def test_senders_that_die_use_up_none_of_a_messages_attempts(
    start_backend: StartBackend, database_url: URL
) -> None:
    async with start_backend(webhook_allow_loopback=True) as backend, receiving() as receiver:
        receiver.answer = lambda _: 503
        made = await hook(backend, receiver)
        place = f"{HOOKS}/{made['id']}"
        delivery_id = (await backend.http.post(f"{place}/test")).json()["id"]
        await until(lambda: len(receiver.messages) == 1)
        url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as own:
            died = "UPDATE webhook_delivery SET attempts = attempts + 20, next_at = now()"
            while not own.execute(f"{died} WHERE next_at < now() + interval '20 s'").rowcount:
                await asyncio.sleep(0.05)  # until the first attempt's end is written
        for _ in range(300):
            delivery = (await backend.http.get(f"{place}/deliveries/{delivery_id}")).json()
            if len(delivery["log"]) == 2:
                break
            await asyncio.sleep(0.05)
        assert delivery["state"] == "waiting"
        wait = datetime.fromisoformat(delivery["next_at"]) - utc_now()
        assert timedelta(minutes=4) < wait <= timedelta(minutes=6)  # as after the second


async def test_a_content_and_the_message_of_its_end_are_one_transaction(
    start_backend: StartBackend, database_url: URL
) -> None:
    """The end that is rolled back tells nobody; each way to end tells once."""
    async with start_backend(webhook_allow_loopback=True) as backend, receiving() as receiver:
        made = await hook(backend, receiver)
        content = await backend.generate()
        database = Database(database_url)
        count = text("SELECT count(*) FROM webhook_delivery")
        async with database.engine.connect() as connection:
            await connection.execute(
                text("UPDATE generation SET status = 'running' WHERE id = :id"),
                {"id": content["id"]},
            )
            await connection.execute(
                text("UPDATE generation SET status = 'failed' WHERE id = :id"),
                {"id": content["id"]},
            )
            assert (await connection.execute(count)).scalar_one() == 2
            await connection.rollback()
            assert (await connection.execute(count)).scalar_one() == 1
        await database.close()
        events = [
            row["type"]
            for row in (await backend.http.get(f"{HOOKS}/{made['id']}/deliveries")).json()["items"]
        ]
        assert events == ["content.succeeded"]


async def test_webhooks_are_their_owners_own(
    start_backend: StartBackend, database_url: URL
) -> None:
    async with start_backend(webhook_allow_loopback=True) as backend, receiving() as receiver:
        made = await hook(backend, receiver)
        other = await add_key(database_url, "other")
        mine = await add_key(database_url, "local")
        assert (await backend.http.get(HOOKS, headers=other)).json()["items"] == []
        await backend.generate(headers=other)
        await backend.generate(headers=mine)
        await until(lambda: len(receiver.messages) == 1)
        listed = await backend.http.get(f"{HOOKS}/{made['id']}/deliveries", headers=mine)
        assert len(listed.json()["items"]) == 1


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://example.com/", "https"),
        ("https://example.com:8443/", "443"),
        ("https://user:pass@example.com/", "user name"),
        ("https://10.0.0.1/", "public"),
        ("https://[::ffff:169.254.169.254]/", "public"),
        ("https://127.0.0.1/", "public"),
        *(
            (f"https://{host}/", "public address, in its usual")
            for host in (
                "2130706433",
                "0x7f.1",
                "0177.0.0.1",
                "127.1",
                "a.0x7f000001",
                "localhost",
                "LOCALHOST.",
                "a.localhost",
                "printer",
                "printer.local",
                "metadata.google.internal",
                "x.home.arpa",
            )
        ),
        ("https://[fe80::1%25eth0]/", "host name"),
        ("https://exa_mple..com/", "host name"),
        ("https://exa mple.com/", "blanks"),
        ("ftp://example.com/", "https"),
        ("https://[::1", "URL"),
    ],
)
async def test_a_url_that_may_not_be_called_is_refused(url: str, hint: str) -> None:
    with pytest.raises(UrlRefused, match=hint):
        Outgoing().check(url)


async def test_a_name_that_leads_inside_is_found_out_when_it_is_called() -> None:
    async def inside(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.1"]

    outgoing = Outgoing(resolver=inside)
    with pytest.raises(OutgoingFailed, match="not public"):
        await outgoing.post("https://rebound.example/x?secret=1", b"{}", {})
    await outgoing.aclose()


async def test_a_receiver_that_stalls_is_let_go_and_its_answer_is_bounded() -> None:
    async with receiving() as receiver:
        outgoing = Outgoing(allow_loopback=True, attempt_seconds=0.3)
        receiver.answer = lambda _: None
        with pytest.raises(OutgoingFailed, match=r"no answer within 0\.3 s"):
            await outgoing.post(receiver.url, b"{}", {})
        receiver.answer = lambda _: 200
        receiver.headers = {"Set-Cookie": "a=b; Path=/"}
        for _ in range(2):
            assert await outgoing.post(receiver.url, b"{}", {}) == (200, "status 200", None)
        assert "cookie" not in receiver.messages[-1].headers
        # The control: without the setting loopback is as private as any other.
        with pytest.raises(OutgoingFailed, match="must"):
            await Outgoing().post(receiver.url, b"{}", {})
        await outgoing.aclose()


async def test_calls_go_through_the_proxy_where_one_is_set() -> None:
    async with receiving() as proxy:
        outgoing = Outgoing(allow_loopback=True, proxy_url=proxy.url.removesuffix("/hook"))
        answer = await outgoing.post("http://localhost:9/elsewhere", b"{}", {})
        assert (answer.status, proxy.messages[0].path) == (200, "http://localhost:9/elsewhere")
        await outgoing.aclose()


def test_ed25519_signatures_are_checked_with_the_public_key() -> None:
    secret = new_secret(Signing.ED25519)
    public = shown_secret(secret)
    assert public.startswith("whpk_")
    version, _, signature = signatures([secret], "msg_1", 1000, b"{}").partition(",")
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.removeprefix("whpk_")))
    key.verify(base64.b64decode(signature), b"msg_1.1000.{}")
    assert version == "v1a"


def test_pauses_grow_as_the_specification_has_them() -> None:
    now = utc_now()
    for attempts, pause in enumerate(PAUSES, start=1):
        assert next_attempt(attempts, now, 0.0) == now + pause
        assert next_attempt(attempts, now, 1.0) == now + pause * 1.1
    assert next_attempt(len(PAUSES) + 1, now, 0.0) is None
    assert next_attempt(1, now, 0.0, retry_after=60) == now + timedelta(seconds=60)
    assert next_attempt(1, now, 0.0, retry_after=1e8) == now + timedelta(days=1)
    assert is_given_up(now - timedelta(days=5), now)
    assert not is_given_up(now - timedelta(days=4.9), now)
    assert not is_given_up(None, now)


async def test_none_is_lost_or_forged_while_receivers_fail_and_senders_are_killed(
    database_url: URL, settings: Settings
) -> None:
    """`python -m chaos.webhooks` does the same with 10,000."""
    database = Database(database_url)
    found = await chaos.run(database, LocalStorage(settings), messages=60, seed=1)
    await database.close()
    assert chaos.faults_of(found) == []
    assert found["kills"] >= 1
    assert found["days"] >= 1
    lost = {**found, "receivers": {"well": {**found["receivers"]["well"], "messages": 1}}}
    assert chaos.faults_of(lost) == ["well: 1 messages of 12"]


def test_loopback_is_what_the_setting_opens_and_nothing_else() -> None:
    outgoing = Outgoing(allow_loopback=True)
    for url in ("http://127.0.0.1:9/x", "http://localhost:9/x", "https://[::1]:9/x"):
        assert outgoing.check(url).hostname
    for private in ("10.1.2.3", "169.254.169.254", "100.64.0.1"):
        assert ipaddress.ip_address(private)
        with pytest.raises(UrlRefused):
            outgoing.check(f"http://{private}/")
