"""What the containers of a fleet tell of themselves, on a board that all of them reach.

Duty: a container's report, the loop that keeps it fresh, and the notes by which others ask it to
cancel. A board that cannot be reached stops no picture.
Must not know: Modal, HTTP, torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field

from sdxl_contract.result import Health, HealthStatus

log = structlog.get_logger()
REPORT, NOTE, MODEL = "container/", "cancel/", "model"
# A note that nobody took is forgotten: a request of the same name may be a new one.
NOTE_SECONDS = 60.0
TELL_SECONDS = 10.0
_LOOK_SECONDS = 0.4


class Board(Protocol):
    """A few short texts by key, shared by all containers."""

    async def put(self, key: str, text: str) -> None:
        """Write `key`."""

    async def pop(self, key: str) -> str | None:
        """Take `key` off; None where it is not there."""

    async def items(self) -> dict[str, str]:
        """All of it."""


class Runs(Protocol):
    """The requests of one container."""

    def ids(self) -> tuple[list[str], list[str]]:
        """What runs, and what ended with a result that is kept."""

    def cancel(self, request_id: str) -> bool:
        """Cancel the run of that id."""


class Reporting(Protocol):
    """What the loop needs of the worker's engine."""

    @property
    def runs(self) -> Runs:
        """Its requests."""

    def health(self, *, include_modules: bool = False) -> Health:
        """The answer of `GET /health`."""

    def metrics_text(self) -> bytes:
        """The answer of `GET /metrics`."""


class Report(BaseModel):
    """One container, as it was at `at` (Unix time).

    Attributes:
        served: whether it was ever ready; a failure after that is not one of its start.
    """

    model_config = ConfigDict(frozen=True)

    at: float
    health: Health
    served: bool = False
    running: list[str] = Field(default_factory=list)
    kept: list[str] = Field(default_factory=list)
    metrics: str = ""


class Reporter:
    """Keeps one container's report on the board, and takes the notes that are for it.

    Args:
        engine: of the container.
        board: shared by the fleet.
        name: of the container.
    """

    def __init__(
        self,
        engine: Reporting,
        board: Board,
        name: str,
        *,
        tell_s: float = TELL_SECONDS,
        look_s: float = _LOOK_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._board = board
        self._name = name
        self._tell_s = tell_s
        self._look_s = look_s
        self._clock = clock
        self._told: tuple[object, ...] = ()
        self._told_at = float("-inf")
        self._model_told = False
        self._served = False

    async def tell(self) -> None:
        """Write the report where it has changed or grown old."""
        health = self._engine.health()
        self._served |= health.status is HealthStatus.READY
        running, kept = self._engine.runs.ids()
        state = (health.status, running, kept)
        if state == self._told and self._clock() - self._told_at < self._tell_s:
            return
        report = Report(
            at=self._clock(),
            health=health,
            served=self._served,
            running=running,
            kept=kept,
            metrics=self._engine.metrics_text().decode(),
        )
        await self._board.put(REPORT + self._name, report.model_dump_json(exclude_none=True))
        if health.base_model is not None and not self._model_told:
            # What the next looker may see while no container runs.
            whole = self._engine.health(include_modules=True)
            gone = {"cached_loras": [], "queue_length": 0, "start": None}
            lasting = whole.model_copy(update=gone)
            await self._board.put(
                MODEL, Report(at=self._clock(), health=lasting).model_dump_json(exclude_none=True)
            )
            self._model_told = True
        self._told, self._told_at = state, self._clock()

    async def through_start(self, load: Callable[[], Awaitable[None]]) -> None:
        """Tell of a start before and after `load`."""
        await self._quietly(self.tell())
        await load()
        await self._quietly(self.tell())

    async def take_notes(self) -> None:
        """Cancel what others asked to be cancelled."""
        for request_id in self._engine.runs.ids()[0]:
            note = await self._board.pop(NOTE + request_id)
            if note is not None and self._clock() - float(note) < NOTE_SECONDS:
                self._engine.runs.cancel(request_id)

    async def run(self) -> None:
        """Tell and take for ever; the last word, when cancelled, is that there is nobody here."""
        try:
            while True:
                await self._quietly(self.tell())
                await self._quietly(self.take_notes())
                await asyncio.sleep(self._look_s)
        finally:
            # A failure stays to be read: it is what the next start would most likely meet.
            if self._engine.health().error is None:
                await self._quietly(asyncio.shield(self._leave()))

    async def _leave(self) -> None:
        await self._board.pop(REPORT + self._name)

    @staticmethod
    async def _quietly(step: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(10):
                await step
        except Exception as error:
            log.warning("board_not_reached", error=type(error).__name__)
