"""What routes are handed: the services, and whose call it is."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPBearer

from app.core.db import DATABASE_LOST, Database
from app.core.dialect import Dialect, dialect_of
from app.core.errors import Forbidden
from app.core.rates import Tries
from app.core.security import (
    PAGE_HEADER,
    PAGE_HEADER_VALUE,
    SESSION_COOKIE,
    is_foreign_page,
)
from app.core.settings import Settings
from app.models import LOCAL_OWNER
from app.services.avatars import AvatarService
from app.services.callers import is_key_required, key_of
from app.services.calls.calls import CallService
from app.services.calls.lora_urls import LoraUrls
from app.services.calls.picture_urls import PictureUrls
from app.services.calls.sent_files import SentFiles
from app.services.collection import CollectionService
from app.services.contents.accepting import ContentService
from app.services.contents.batches import BatchService
from app.services.contents.events import EventService
from app.services.contents.queue import JobQueue
from app.services.inputs.embeddings import EmbeddingService
from app.services.inputs.images import InputImageService
from app.services.inputs.words import WordsService
from app.services.limits import UNLIMITED, Allowance, take_call
from app.services.loras import LoraService
from app.services.marking.marking import Marking
from app.services.marking.replaying import ReplayService
from app.services.marking.takedowns import TakedownService
from app.services.storage import Storage
from app.services.webhooks.service import WebhookService
from app.services.worker.base_model import BaseModel
from app.services.worker.gate import Gate
from sdxl_contract.errors import Unauthorized

# For the schema alone: who asks is found by `get_caller`. Either of the two; none is needed before
# the first key is made.
KEY_OR_COOKIE = [
    Depends(HTTPBearer(scheme_name="api_key", auto_error=False)),
    Depends(APIKeyCookie(name=SESSION_COOKIE, scheme_name="page_session", auto_error=False)),
]

_LOOK_SECONDS = 2.0
E = TypeVar("E")
T = TypeVar("T")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Services:
    """Everything that one running server has."""

    settings: Settings
    database: Database
    storage: Storage
    base_model: BaseModel
    contents: ContentService
    loras: LoraService
    inputs: InputImageService
    words: WordsService
    embeddings: EmbeddingService
    avatars: AvatarService
    batches: BatchService
    events: EventService
    webhooks: WebhookService
    calls: CallService
    lora_urls: LoraUrls
    picture_urls: PictureUrls
    sent_files: SentFiles
    collection: CollectionService
    queue: JobQueue
    marking: Marking
    replays: ReplayService
    takedowns: TakedownService
    gate: Gate
    sign_in_tries: Tries = field(default_factory=lambda: Tries(10, 60.0))


# Dependencies are `async` although they wait for nothing: the framework sends others through a
# thread each time, which under load costs more than all they do.
async def get_services(request: Request) -> Services:
    """The running server's services."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


@dataclass(frozen=True)
class Caller:
    """Who asks: a key, by itself or by a page that signed in with it; or the keyless local user."""

    owner: str
    key_id: uuid.UUID | None = None
    name: str | None = None
    allowance: Allowance = UNLIMITED
    made_by: uuid.UUID | None = None  # the key that made this one

    @property
    def counted_as(self) -> str:
        """Whose limits its calls use up: keys that a key makes give it no more of them."""
        return str(self.made_by or self.key_id or self.owner)


async def find_caller(request: Request, services: ServicesDep) -> Caller | None:
    """Who proves itself by a key or a cookie; None where neither is sent or valid."""
    dialect = dialect_of(request.scope)
    token = dialect.api_key(request.headers)
    cookie = request.cookies.get(SESSION_COOKIE) if dialect.takes_cookie else None
    key = await key_of(services.database, token=token, cookie=cookie)
    if key is None:
        return None
    return Caller(
        key.owner, key.id, key.name, Allowance.of(services.settings, key), made_by=key.made_by
    )


def check_page_header(request: Request) -> None:
    """Refuse a change by cookie that a page of another site could have sent.

    Raises:
        Forbidden: the header that only our own page can add is missing.
    """
    if request.method in _READING:
        return
    if request.headers.get(PAGE_HEADER) != PAGE_HEADER_VALUE:
        raise Forbidden(
            f"With a cookie, a change needs the header {PAGE_HEADER}: {PAGE_HEADER_VALUE}."
        )


def refuse_foreign_page(request: Request, services: ServicesDep) -> None:
    """Where no key is needed, answer only this computer's own pages.

    Raises:
        Forbidden: a page of another site seems to ask.
    """
    if is_foreign_page(request.headers, services.settings.base_url):
        raise Forbidden(
            "This server needs no API key yet, so it answers only this computer's own addresses."
        )


def _key_needed(dialect: Dialect) -> str:
    schemes = " or ".join(scheme.capitalize() for scheme in sorted(dialect.schemes))
    sign_in = ", or sign in" if dialect.takes_cookie else ""
    return f"An API key is needed: send Authorization: {schemes} <api key>{sign_in}."


def refuse_other_origin(request: Request, services: ServicesDep) -> None:
    """Refuse a page of another site, unless CORS_ORIGINS lets it call.

    Raises:
        Forbidden: it is one.
    """
    origin = request.headers.get("origin")
    if origin is None or origin in services.settings.allowed_origins:
        return
    if is_foreign_page(request.headers, services.settings.base_url):
        raise Forbidden("Pages of this origin may not call the server: see CORS_ORIGINS.")


async def get_caller(request: Request, services: ServicesDep) -> Caller:
    """Who asks, once for each request.

    Raises:
        Unauthorized: a key is needed, or what was sent is not valid.
        Forbidden: a page of another site seems to ask.
        RateLimited: it makes too many calls.
    """
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    caller = await find_caller(request, services)
    dialect = dialect_of(request.scope)
    by_key = dialect.api_key(request.headers) is not None
    if caller is None:
        if by_key and not dialect.any_key_while_open:
            raise Unauthorized("This API key is not valid.")
        if await is_key_required(services.database):
            raise Unauthorized("This API key is not valid." if by_key else _key_needed(dialect))
        refuse_foreign_page(request, services)
        caller = Caller(LOCAL_OWNER, allowance=Allowance.of(services.settings, None))
    elif not by_key:
        check_page_header(request)
    elif "basic" in dialect.schemes:
        # Browsers add a Basic credential unasked, also to what another site's page sends.
        refuse_other_origin(request, services)
    request.state.caller = caller
    if not dialect.is_poll(request.scope):
        await take_call(services.database, caller.counted_as, caller.allowance)
    return caller


async def known_caller(request: Request, services: Services) -> Caller | None:
    """Who asks where nobody has to say so; None for a stranger, and for another site's page."""
    caller = await find_caller(request, services)
    if caller is not None or is_foreign_page(request.headers, services.settings.base_url):
        return caller
    return None if await is_key_required(services.database) else Caller(LOCAL_OWNER)


CallerDep = Annotated[Caller, Depends(get_caller)]


@dataclass(frozen=True)
class Rights:
    """Whether a call that takes long may still be answered: its key may be revoked meanwhile."""

    request: Request
    services: Services
    caller: Caller

    async def hold(self) -> bool:
        """Whether the key, the session, or being without a key is still good."""
        try:
            if self.caller.key_id is None:
                return not await is_key_required(self.services.database)
            found = await find_caller(self.request, self.services)
        except DATABASE_LOST:  # nobody knows; whoever needs the database says so
            return True
        return found is not None and found.key_id == self.caller.key_id

    async def check(self) -> None:
        """Go on only while they hold.

        Raises:
            Unauthorized: they do not.
        """
        if not await self.hold():
            raise Unauthorized("This API key was revoked, or the session ended.")

    async def until(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives; given up where they end before.

        Raises:
            Unauthorized: they have ended.
        """
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=_LOOK_SECONDS)
                await self.check()
                if done:
                    return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def while_they_hold(
        self, events: AsyncGenerator[E], is_last: Callable[[E], bool]
    ) -> AsyncGenerator[E]:
        """`events` until their end, or until the rights end; looked at again before the last."""
        looked = time.monotonic()
        coming: asyncio.Future[E] | None = None
        try:
            while True:
                if coming is None:
                    coming = asyncio.ensure_future(anext(events))
                left = looked + _LOOK_SECONDS - time.monotonic()
                await asyncio.wait({coming}, timeout=max(0.0, left))
                event = None
                if coming.done():
                    try:
                        event = coming.result()
                    except StopAsyncIteration:
                        return
                    finally:
                        coming = None
                if time.monotonic() - looked >= _LOOK_SECONDS or (event and is_last(event)):
                    if not await self.hold():
                        return
                    looked = time.monotonic()
                if event is not None:
                    yield event
        finally:
            if coming is not None:
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await coming
            await events.aclose()


async def get_rights(request: Request, services: ServicesDep, caller: CallerDep) -> Rights:
    """The call's rights, to be looked at again."""
    return Rights(request, services, caller)


RightsDep = Annotated[Rights, Depends(get_rights)]


async def get_owner(caller: CallerDep) -> str:
    """Whose LoRAs, avatars and contents this call sees."""
    return caller.owner


OwnerDep = Annotated[str, Depends(get_owner)]
