"""What the worker's base model can draw and which LoRAs fit it, also while the worker is down.

Duty: look at the worker's health now and then, keep the last good answer in the database. What
was never seen is None, never a guess.
Must not know: who asks, and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from enum import Enum
from typing import Protocol

from app.core.db import DATABASE_LOST, Database
from app.repositories.base_models import BaseModelRepository
from app.services.worker.retry import Outage, outage
from sdxl_contract.errors import ContractError
from sdxl_contract.limits import BaseModelSignature, ModelLimits
from sdxl_contract.result import Health, HealthStatus

_ASK_SECONDS = 4.0
_RETRY_SECONDS = 1.0
_FRESH_SECONDS = 30.0
# A worker that is there but slow (starting, or busy) is waited for at an upload while no model was
# ever seen.
_FIRST_SECONDS = 15.0

log = logging.getLogger(__name__)


class Seen(Enum):
    """How a look found the worker."""

    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    UNCLEAR = "unclear"  # no answer in time, or none of a worker's; or nobody has looked


class HealthSource(Protocol):
    """Who can say how the worker is."""

    async def health(self, *, include_modules: bool = False) -> Health:
        """The worker's `GET /health`."""


class BaseModel:
    """The last description of the worker's base model.

    Args:
        endpoint: which worker's description is kept.
        provider: the name of who `source` is, among those who draw.
    """

    def __init__(
        self,
        source: HealthSource,
        database: Database,
        endpoint: str,
        provider: str = "modal_sdxl_lora",
    ) -> None:
        self._provider = provider
        self._source = source
        self._database = database
        self._endpoint = endpoint
        self._health: Health | None = None  # the last good answer, modules included
        self._live: Health | None = None  # the last answer of any kind
        self._loaded = False
        self._seen = Seen.UNCLEAR
        self._timed_out = False
        self._looked_at = self._good_at = float("-inf")
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()  # somebody used limits that are not fresh

    @property
    def limits(self) -> ModelLimits | None:
        """The limits that the worker was last seen with; None where it was never seen.

        Known at once, and looked after meanwhile (by `watch`): a worker that starts or hangs keeps
        nobody waiting who only wants to be accepted.
        """
        if not self._is_fresh:
            self._wanted.set()
        return self._stated_limits()

    async def fresh_limits(self) -> ModelLimits | None:
        """The same after a look, where the last one is some time ago: before refusing by them."""
        if not self._is_fresh:
            await self.look()
        return self._stated_limits()

    def _stated_limits(self) -> ModelLimits | None:
        health = self._health
        return health.limits if health and "limits" in health.model_fields_set else None

    @property
    def schedulers(self) -> list[str]:
        """The samplers that the worker was last seen to offer; empty where it never said."""
        return self._health.schedulers if self._health else []

    async def signature(self) -> BaseModelSignature | None:
        """What a LoRA must fit; None where no worker was ever seen that says so."""
        await self._freshen()
        return self._health.signature if self._health else None

    @property
    def seen(self) -> Seen:
        """How the worker was at the last look."""
        return self._seen

    @property
    def known(self) -> Health | None:
        """The last good answer, without asking."""
        return self._health

    @property
    def live(self) -> Health | None:
        """The worker's last answer; None where it gave none."""
        return self._live

    def gpu_of(self, provider: str | None) -> str | None:
        """What `provider` (None: whoever is asked first) draws on, as far as it was seen."""
        seen = self._live or self._health
        if seen is None or provider not in (None, self._provider):
            return None
        return seen.gpu

    @property
    def _is_fresh(self) -> bool:
        return time.monotonic() - self._good_at < _FRESH_SECONDS

    async def _freshen(self) -> None:
        if self._is_fresh:
            return
        await self.look()
        # A worker that is about to say what fits is worth a wait: a file is held against it.
        until = time.monotonic() + _FIRST_SECONDS
        while self._health is None and self._is_coming and time.monotonic() < until:
            await asyncio.sleep(_RETRY_SECONDS)
            await self.look(within_s=_FIRST_SECONDS)

    @property
    def _is_coming(self) -> bool:
        """Whether the last look found a worker that could not yet answer."""
        return self._seen is Seen.LOADING or self._timed_out

    async def look(self, within_s: float = _ASK_SECONDS) -> bool:
        """Ask the worker, at most once a second, for `within_s`. True where it is ready."""
        async with self._lock:
            if not self._loaded:
                await self._load()
            if time.monotonic() - self._looked_at >= _RETRY_SECONDS:
                await self._ask(within_s)
                self._looked_at = time.monotonic()
        return self._live is not None and self._live.status is HealthStatus.READY

    async def _load(self) -> None:
        async with self._database.session() as session:
            kept = await BaseModelRepository(session).get(self._endpoint)
        if kept is not None:
            self._health = Health.model_validate(kept)
        self._loaded = True

    async def _ask(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                health = await self._source.health()
                if health.base_model is not None and self._is_news(health):
                    health = await self._source.health(include_modules=True)
        except (ContractError, TimeoutError) as error:
            self._live = None
            self._timed_out = isinstance(error, TimeoutError)
            away = isinstance(error, ContractError) and outage(error) is Outage.WORKER
            self._seen = Seen.UNREACHABLE if away else Seen.UNCLEAR
            log.debug("the worker's health cannot be read: %s", type(error).__name__)
            return
        self._live = health
        self._timed_out = False
        self._seen = Seen(health.status.value)
        if health.status is not HealthStatus.READY:
            return
        self._good_at = time.monotonic()
        if health.base_model is not None and self._is_news(health):
            self._health = health
            async with self._database.session() as session:
                await BaseModelRepository(session).put(
                    self._endpoint, health.model_dump(mode="json", exclude_unset=True)
                )
            log.info("the worker's base model is %s on %s", health.base_model, health.gpu)

    def _is_news(self, health: Health) -> bool:
        """Whether `health` differs from the kept one in anything but its passing state."""
        if self._health is None:
            return True
        return _lasting(health) != _lasting(self._health)

    async def watch(self, every_s: float) -> None:
        """Look for ever: every `every_s` seconds, sooner while it is not ready or is asked for."""
        while True:
            ready = False
            try:
                ready = await self.look()
            except DATABASE_LOST as error:
                log.warning("the base model cannot be kept: %s", type(error).__name__)
            except Exception:
                log.exception("looking at the worker failed")
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), every_s if ready else min(every_s, 2.0))


def _lasting(health: Health) -> tuple[object, ...]:
    signature = health.signature.model_dump(exclude={"modules"}) if health.signature else None
    return (
        health.base_model, health.weights, health.gpu, health.device, health.dtype, health.limits,
        health.schedulers, signature,
    )  # fmt: skip
