"""The durable queue: contents' jobs on procrastinate, in the same database as the contents.

Duty: enqueue within the caller's transaction; run jobs inside this process; take over the jobs
of processes that died; end what waits past its deadline.
Must not know: what a job does (`run` is handed in).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence

import procrastinate

from app.core.db import Database, DriverConnection, DriverPool
from app.core.pools import Duty, in_pool
from app.core.settings import Settings
from app.core.tracing import traceparent
from app.repositories.attempts import AttemptRepository
from app.repositories.contents import ContentStatements, Line
from app.services.upkeep.chores import Chore

TASK = "draw_content"
QUEUE = "content"
CHORES = "chores"
_POLL_SECONDS = 2.0
_RESTART_SECONDS = 1.0
_EXPIRE_SECONDS = 1.0
_NO_TURN = "it had no turn"
_STOP_AGAIN_SECONDS = 3.0

log = logging.getLogger(__name__)


class JobQueue:
    """Jobs, each a ticket for one content; `run(job_id)` uses it up.

    `on_expired` hears of contents that failed because their deadline passed while they waited;
    `why_waiting` says what keeps all of them.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        run: Callable[[int], Awaitable[None]],
        revive_database: Callable[[], None] = lambda: None,
        chores: Sequence[Chore] = (),
        on_expired: Callable[[uuid.UUID], None] = lambda _: None,
        why_waiting: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._revive_database = revive_database
        self._on_expired = on_expired
        self._why_waiting = why_waiting
        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector())

        # Which content a ticket is used for is found when it is: turns are the database's business.
        @self._app.task(name=TASK, queue=QUEUE, pass_context=True)
        async def draw_content(context: procrastinate.JobContext, /, **_: object) -> None:
            assert context.job.id is not None
            await run(context.job.id)

        self._task = draw_content
        for chore in chores:
            self._add_chore(chore)
        self._stopping = asyncio.Event()
        self._connections: DriverPool | None = None
        self._runner: asyncio.Task[None] | None = None
        self._chore_runner: asyncio.Task[None] | None = None
        self._rescuer: asyncio.Task[None] | None = None
        self._expirer: asyncio.Task[None] | None = None

    async def line(self, owner: str, *, paused: bool | None = None) -> Line:
        """An owner's queue, paused or resumed first where that is asked for.

        A pause outlives restarts. Deadlines go on: a content may fail of one while it is paused.
        """
        async with self._database.direct() as connection:
            statements = ContentStatements(connection, owner)
            if paused is not None:
                await (statements.pause() if paused else statements.resume())
            return await statements.line()

    def _add_chore(self, chore: Chore) -> None:
        @self._app.periodic(cron=chore.cron)
        @self._app.task(name=chore.name, queue=CHORES)
        async def run_chore(timestamp: int) -> None:
            await chore.run()

    @property
    def is_running(self) -> bool:
        """Whether jobs are being worked off."""
        return self._runner is not None and not self._runner.done()

    async def defer(self, connection: DriverConnection, content_id: uuid.UUID) -> int:
        """Add a content's job in `connection`'s transaction, in which its row is to follow."""
        arguments = {"content_id": str(content_id)}
        if (trace := traceparent()) is not None:
            arguments["trace"] = trace
        return await self._task.configure(connection=connection).defer_async(**arguments)

    async def start(self) -> None:
        """Open the queue, take over what was left behind, and begin to work."""
        self._connections = self._database.driver_pool(
            self._settings.job_concurrency + 6, timeout=10
        )
        await self._connections.open(wait=True)
        await self._app.open_async(self._connections)
        await self.rescue()
        self._runner = asyncio.create_task(
            self._run_for_ever(QUEUE, self._settings.job_concurrency), name="job runner"
        )
        # Of their own, so that a long chore takes no picture's place.
        self._chore_runner = asyncio.create_task(self._run_for_ever(CHORES, 1), name="chore runner")
        self._rescuer = asyncio.create_task(self._rescue_for_ever(), name="job rescuer")
        self._expirer = asyncio.create_task(self._expire_for_ever(), name="deadline watch")

    async def stop(self) -> None:
        """Let running jobs end within the grace; the rest goes back into the queue."""
        self._stopping.set()
        started = (self._rescuer, self._expirer, self._chore_runner, self._runner)
        tasks = {task for task in started if task}
        while tasks:
            for task in tasks:
                task.cancel()
            # The queue's worker may swallow a cancellation that comes while it is starting.
            _, tasks = await asyncio.wait(
                tasks, timeout=self._settings.shutdown_grace_seconds + _STOP_AGAIN_SECONDS
            )
        with contextlib.suppress(Exception):
            await self._app.close_async()
        if self._connections is not None:
            await self._connections.close()

    async def rescue(self) -> int:
        """Queue again the jobs of silent runners, and contents without a job. Returns how many."""
        count = 0
        stalled = await self._app.job_manager.get_stalled_jobs(
            seconds_since_heartbeat=self._settings.job_stalled_seconds
        )
        for job in stalled:
            await self._app.job_manager.retry_job(job)
            count += 1
        async with self._database.direct() as connection, connection.transaction():
            repository = AttemptRepository(connection)
            for content_id in await repository.orphans():
                await repository.set_job(content_id, await self.defer(connection, content_id))
                count += 1
        if count:
            log.warning("took over %d jobs that were left behind", count)
        return count

    async def _run_for_ever(self, queue: str, concurrency: int) -> None:
        while not self._stopping.is_set():
            try:
                await self._app.run_worker_async(
                    queues=[queue],
                    concurrency=concurrency,
                    wait=True,
                    install_signal_handlers=False,
                    listen_notify=True,
                    fetch_job_polling_interval=_POLL_SECONDS,
                    abort_job_polling_interval=_POLL_SECONDS,
                    shutdown_graceful_timeout=self._settings.shutdown_grace_seconds,
                    delete_jobs="always",
                    update_heartbeat_interval=self._settings.job_heartbeat_seconds,
                    stalled_worker_timeout=self._settings.job_stalled_seconds,
                )
                if self._stopping.is_set():
                    return
                log.warning("the job runner stopped; starting it again")
            except Exception as error:
                log.warning("the job runner failed (%s); starting again", type(error).__name__)
            await asyncio.sleep(_RESTART_SECONDS)
            with contextlib.suppress(Exception):
                await in_pool(Duty.DATABASE, self._revive_database)

    async def _rescue_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.job_stalled_seconds / 2)
            try:
                await self.rescue()
            except Exception as error:
                log.warning("looking for jobs left behind failed (%s)", type(error).__name__)

    async def _expire_for_ever(self) -> None:
        while True:
            try:
                why = self._why_waiting() or _NO_TURN
                async with self._database.direct() as connection:
                    for content_id in await AttemptRepository(connection).expire(why):
                        log.warning("content %s: its deadline passed while it waited", content_id)
                        self._on_expired(content_id)
            except Exception as error:
                log.warning("looking for passed deadlines failed (%s)", type(error).__name__)
            await asyncio.sleep(_EXPIRE_SECONDS)
