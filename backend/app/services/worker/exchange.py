"""One attempt at one picture: the POST, Modal's 303s followed by GET, and the answer.

Duty: say how an attempt ended, or that nobody knows yet; return from an attempt only when the
request may be POSTed again.
Must not know: how often to try, and where pictures go.

When may a request be POSTed again?
- It was never sent, or an answer came that is the end of it: nothing runs any more.
- A 303 came with a place to look: the work goes on there, whatever happens to the connection, and
  an edge that is busy says nothing of it. Only GETs follow, until the end is known.
- The connection broke after the request was sent, a gateway gave up waiting, or a 303 named no
  place: it may still run. The worker is asked (`GET /requests/{id}`). One process stops a request
  whose client is gone within one step, so its `unknown` means ended. Where one name stands for
  many containers another one may be answering: only `succeeded` is believed, else the attempt
  lasts until the caller's deadline.
- In every case the repeated POST carries the same `request_id`, so that a worker which still has
  the first run, or its result, gives that instead of drawing twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import httpx2

from app.services.worker.answer import (
    error_from_answer,
    leaves_run_open,
    read_event,
    read_result,
)
from app.services.worker.sse import EventTooLarge, read_events
from sdxl_contract.errors import ContractError, GenerationFailed, ModelLoadFailed, from_body
from sdxl_contract.request import GenerateRequest, dump_request
from sdxl_contract.result import ErrorEvent, GenerateResult, ResultEvent, WorkerEvent
from sdxl_contract.routing.affinity import AFFINITY_HEADER, session_id

OnEvent = Callable[[WorkerEvent], Awaitable[None]]

CONNECT_S = 10.0
GENERATE_PATH = "/generate-image"
_MAX_ANSWER_BYTES = 256 * 2**20
# Beyond the request's own timeout: what a cold start and the way back may take.
_ANSWER_MARGIN_S = 120.0
_LOST = "the connection to the worker broke while it was drawing"
_DEFAULT_PORTS = {"http": 80, "https": 443}
# What fails before a byte of the request has left.
_NEVER_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
    httpx2.InvalidURL,
)


class _RunOpen(Exception):
    """Nobody said what became of the request: it may still be drawn."""


class WorkerExchange:
    """Sends requests to one worker, one attempt each.

    Args:
        client: with the credentials in its headers; must not follow redirects.
        base: the worker's URL without `/generate-image`.
        control: where runs are asked for; `base` unless calls that draw nothing have a URL of
            their own.
        many_containers: whether several workers answer at that URL.
        poll_s: seconds between two looks at a run.
        secrets: values that no error of the worker's may repeat.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        base: str,
        *,
        control: str,
        many_containers: bool,
        poll_s: float,
        secrets: tuple[str, ...] = (),
    ) -> None:
        self._client = client
        self._base = base
        self._control = control
        self._many_containers = many_containers
        self._poll_s = poll_s
        self._secrets = secrets

    async def attempt(
        self, request: GenerateRequest, on_event: OnEvent | None, trouble: list[str] | None = None
    ) -> GenerateResult:
        """Draw `request` once. Runs until its end is known: the caller sets the deadline.

        Args:
            trouble: gets words for what is being waited for, where that is no picture on its way.

        Raises:
            ContractError: it was not drawn, and nothing of it runs any more.
        """
        started = time.monotonic()
        try:
            return await self._exchange(request, on_event)
        except _RunOpen as error:
            if trouble is not None:
                trouble.append(f"{_LOST}, and nobody says what became of the request")
            await self._wait_until_ended(request, started)
            raise GenerationFailed(_LOST, details={"reason": "connection_lost"}) from error

    async def _exchange(self, request: GenerateRequest, on_event: OnEvent | None) -> GenerateResult:
        """POST, then GET until the answer is there."""
        read_s = request.timeout + _ANSWER_MARGIN_S
        timeout = httpx2.Timeout(30.0, connect=CONNECT_S, read=read_s)
        headers = {"Accept": "text/event-stream" if on_event else "application/json"}
        headers |= affinity_headers(request)
        url = self._base + GENERATE_PATH
        try:
            async with self._client.stream(
                "POST",
                url,
                content=dump_request(request),
                headers=headers | {"Content-Type": "application/json"},
                timeout=timeout,
            ) as answer:
                if answer.status_code != 303:
                    return await self._read(answer, on_event, first=True)
                place = _next_url(url, answer)
        except _NEVER_SENT as error:
            raise unreachable(error) from error
        except httpx2.HTTPError as error:
            raise _RunOpen from error
        if place is None:
            raise _RunOpen
        while True:
            try:
                async with self._client.stream(
                    "GET", place, headers=headers, timeout=timeout
                ) as answer:
                    if answer.status_code != 303:
                        return await self._read(answer, on_event, first=False)
                    place = _next_url(place, answer) or place
            except (httpx2.HTTPError, _RunOpen):
                pass  # the work goes on: ask for its result again
            # Also after a 303 that came at once, as it does under load.
            await asyncio.sleep(self._poll_s)

    async def _read(
        self, answer: httpx2.Response, on_event: OnEvent | None, *, first: bool
    ) -> GenerateResult:
        kind = answer.headers.get("content-type", "").lower()
        if kind.startswith("text/event-stream") and answer.status_code == 200:
            return await self._read_stream(answer, on_event)
        collected = bytearray()
        try:
            async for chunk in answer.aiter_bytes():
                collected += chunk
                if len(collected) > _MAX_ANSWER_BYTES:
                    _fail_too_large()
        except httpx2.DecodingError as error:
            # An answer came, so the run has ended; only its compression is damaged.
            raise GenerationFailed(
                "the worker's answer cannot be decompressed", details={"reason": "bad_answer"}
            ) from error
        body = bytes(collected)
        if answer.status_code == 200:
            return read_result(body, self._secrets)
        if leaves_run_open(answer.status_code, body, first=first):
            raise _RunOpen
        raise error_from_answer(answer.status_code, body, answer.headers.get("retry-after"))

    async def _read_stream(
        self, answer: httpx2.Response, on_event: OnEvent | None
    ) -> GenerateResult:
        async with aclosing(read_events(answer.aiter_bytes(), _MAX_ANSWER_BYTES)) as events:
            try:
                async for data in events:
                    event = read_event(data, self._secrets)
                    if isinstance(event, ResultEvent):
                        return event.result
                    if isinstance(event, ErrorEvent):
                        raise from_body(event.error, event.status)
                    if event is not None and on_event is not None:
                        await on_event(event)
            except EventTooLarge:
                _fail_too_large()
        raise _RunOpen

    async def _wait_until_ended(self, request: GenerateRequest, started: float) -> None:
        """Return once the run that was cut off cannot be going on any more."""
        certain = started + request.timeout + _ANSWER_MARGIN_S
        while self._many_containers or time.monotonic() < certain:
            await asyncio.sleep(self._poll_s)
            state = await self._state(request)
            if state == "succeeded" or (state == "unknown" and not self._many_containers):
                return

    async def _state(self, request: GenerateRequest) -> str | None:
        """What the worker says of a request; None where nobody answers, or it has no id."""
        if request.request_id is None:
            return None
        try:
            answer = await self._client.get(
                f"{self._control}/requests/{request.request_id}", headers=affinity_headers(request)
            )
            return str(answer.json()["state"]) if answer.status_code == 200 else None
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            return None


def affinity_headers(request: GenerateRequest) -> dict[str, str]:
    """What an edge may route by, so that requests for the same LoRAs meet in one memory; an edge
    that does not know it passes it on."""
    value = session_id(request)
    return {} if value is None else {AFFINITY_HEADER: value}


def _next_url(url: str, answer: httpx2.Response) -> str | None:
    """Where a 303 says that the result will be; None where it says nothing.

    Raises:
        GenerationFailed: it leads to another origin, which must not get our credentials.
    """
    location = answer.headers.get("location", "").strip()
    if not location:
        return None
    try:
        target = str(httpx2.URL(urljoin(url, location)))
        followed = _origin(target) == _origin(url)
    except (ValueError, httpx2.InvalidURL):
        followed = False
    if not followed:
        raise GenerationFailed(
            "the worker's URL redirects to another host, which is not followed",
            details={"reason": "redirect"},
        )
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def _fail_too_large() -> NoReturn:
    raise GenerationFailed(
        f"the worker's answer is larger than {_MAX_ANSWER_BYTES} bytes",
        details={"reason": "too_large"},
    )


def unreachable(error: Exception) -> ContractError:
    """What a connection that could not be made means."""
    return ModelLoadFailed(
        f"the worker cannot be reached ({type(error).__name__})",
        details={"reason": "unreachable"},
    )
