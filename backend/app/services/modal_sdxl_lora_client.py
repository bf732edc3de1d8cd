"""Calls the SDXL worker, on Modal or anywhere else.

Duty: one picture out of a worker that may be cold, busy, restarting or gone, within a deadline;
retry only what the contract allows; follow Modal's 303 by GET; POST again only when the first run
has ended, or when the worker will recognise the request by its id.
Must not know: databases, buckets, users.

When may a request be POSTed again?
- The connection was never made, or an answer with a final status came: nothing runs any more.
- The connection broke after the request was sent: it may still run. The worker is asked
  (`GET /requests/{id}`) until it no longer says `running`. A worker that runs one process stops a
  request whose client is gone within one step, so `unknown` from it means ended. Behind Modal
  another container may be the one that answers: there `unknown` proves nothing, and the client
  waits until the request's own timeout has passed.
- In every case the repeated POST carries the same `request_id`, so that a worker which still has
  the first run, or its result, gives that instead of drawing twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import httpx2
import stamina
from pydantic import TypeAdapter, ValidationError

from app.core.settings import Settings
from app.services.retry import Failures, RetryPolicy, retry_after
from app.services.sse import read_events
from app.services.worker_answer import decode_images, error_from_answer, read_result
from sdxl_contract.errors import (
    ContractError,
    GenerationFailed,
    ModelLoadFailed,
    RequestTimeout,
    from_body,
)
from sdxl_contract.request import GenerateRequest, dump_request
from sdxl_contract.result import ErrorEvent, GenerateResult, Health, ResultEvent, WorkerEvent

BuildRequest = Callable[[], Awaitable[GenerateRequest]]
OnEvent = Callable[[WorkerEvent], Awaitable[None]]

_MAX_ANSWER_BYTES = 256 * 2**20
_CONNECT_S = 10.0
# Beyond the request's own timeout: what a cold start and the way back may take.
_ANSWER_MARGIN_S = 120.0
_POLL_S = 0.5
_MAX_REDIRECTS = 1000
_GENERATE_PATH = "/generate-image"
_EVENT = TypeAdapter[WorkerEvent](WorkerEvent)


@dataclass(frozen=True)
class InferenceOutcome:
    """Pictures that were looked at, and how they came about."""

    result: GenerateResult
    images: list[bytes] = field(repr=False)
    provider: str
    attempts: int


class _MaybeRunning(Exception):
    """The connection broke after the request was sent: the worker may still be drawing."""


class ModalSdxlLoraClient:
    """An async client of one worker. Use it as a context manager, or call `aclose`.

    Args:
        endpoint_url: the worker's `…/generate-image`, or its base URL.
        api_token: the worker's bearer token.
        proxy_key, proxy_secret: Modal's proxy auth (`wk-…`, `ws-…`).
        timeout_s: for one picture, all attempts included, unless a call says otherwise.
        policy: how often to retry.
        transport: for tests.
    """

    name = "modal_sdxl_lora"

    def __init__(
        self,
        endpoint_url: str,
        *,
        api_token: str | None = None,
        proxy_key: str | None = None,
        proxy_secret: str | None = None,
        timeout_s: float = 300.0,
        policy: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        base = endpoint_url.rstrip("/")
        self._base = base.removesuffix(_GENERATE_PATH)
        self._url = self._base + _GENERATE_PATH
        self._timeout_s = timeout_s
        self._policy = policy or RetryPolicy()
        host = urlsplit(base).hostname or ""
        self._many_containers = host.endswith(".modal.run") or proxy_key is not None
        headers: dict[str, str] = {}
        if api_token:
            headers["Authorization"] = f"Bearer {api_token}"
        if proxy_key and proxy_secret:
            headers |= {"Modal-Key": proxy_key, "Modal-Secret": proxy_secret}
        self._client = httpx2.AsyncClient(
            headers=headers,
            follow_redirects=False,
            timeout=httpx2.Timeout(30.0, connect=_CONNECT_S),
            transport=transport,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> ModalSdxlLoraClient:
        """The client that the backend's settings describe.

        Raises:
            ValueError: MODAL_ENDPOINT_URL is unset.
        """
        if settings.modal_endpoint_url is None:
            raise ValueError("MODAL_ENDPOINT_URL is unset: it must be the worker's URL")

        def secret(name: str) -> str | None:
            value = getattr(settings, name)
            return value.get_secret_value() if value else None

        return cls(
            settings.modal_endpoint_url,
            api_token=secret("modal_api_token"),
            proxy_key=secret("modal_proxy_key"),
            proxy_secret=secret("modal_proxy_secret"),
            timeout_s=settings.modal_timeout_seconds,
            policy=RetryPolicy(settings.modal_max_retries, settings.modal_retry_backoff_base),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(host={urlsplit(self._base).hostname!r})"

    async def __aenter__(self) -> ModalSdxlLoraClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    # --- calls --------------------------------------------------------------------------------

    async def generate_image(self, request: GenerateRequest) -> InferenceOutcome:
        """Draw `request` as it is, for callers whose URLs outlive every attempt.

        Raises:
            ContractError: as `generate`.
        """

        async def build() -> GenerateRequest:
            return request

        return await self.generate(build, request_id=request.request_id)

    async def generate(
        self,
        build_request: BuildRequest,
        *,
        request_id: str | None = None,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> InferenceOutcome:
        """Draw one request, with retries.

        Args:
            build_request: called before each attempt, so that URLs are signed at dispatch.
            request_id: by which the worker recognises a repetition.
            deadline_s: seconds for all attempts together.
            on_event: hears of progress; the worker then streams.

        Raises:
            ContractError: the last attempt's error, or `RequestTimeout` at the deadline.
        """
        total_s = self._timeout_s if deadline_s is None else deadline_s
        deadline = time.monotonic() + total_s
        failures: Counter[object] = Counter()
        attempts = 0

        def decide(error: Exception) -> bool | float:
            if not isinstance(error, ContractError):
                return False
            failures[error.code] += 1
            wait = retry_after(
                error,
                Failures(failures.total(), failures[error.code]),
                self._policy,
                random.random(),
            )
            if wait is None or time.monotonic() + wait >= deadline:
                return False
            # stamina takes 0 for "do not retry".
            return max(wait, 0.001)

        try:
            async with asyncio.timeout(total_s):
                async for attempt in stamina.retry_context(on=decide, attempts=None, timeout=None):
                    with attempt:
                        attempts += 1
                        request = await build_request()
                        if request_id is not None:
                            request = request.model_copy(update={"request_id": request_id})
                        result = await self._once(request, deadline, on_event)
                        images = await asyncio.to_thread(decode_images, result, request)
                        return InferenceOutcome(result, images, self.name, attempts)
        except TimeoutError as error:
            raise RequestTimeout(
                f"no picture within {total_s:g} s and {attempts} attempts",
                details={"reason": "deadline"},
            ) from error
        raise AssertionError("stamina ends with a return or an exception")

    async def cancel(self, request_id: str) -> bool:
        """Ask the worker to stop a request; True when it was running there."""
        try:
            answer = await self._client.post(f"{self._base}/requests/{request_id}/cancel")
            return answer.status_code == 202 and answer.json().get("state") == "cancelling"
        except (httpx2.HTTPError, ValueError):
            return False

    async def health(self, *, include_modules: bool = False) -> Health:
        """What the worker says of itself, also while it loads or has failed.

        Raises:
            ModelLoadFailed: nobody answers, or it is no worker.
        """
        query = {"include": "modules"} if include_modules else None
        try:
            answer = await self._client.get(f"{self._base}/health", params=query)
            return Health.model_validate_json(answer.content)
        except httpx2.HTTPError as error:
            raise _unreachable(error) from error
        except ValidationError as error:
            raise ModelLoadFailed(
                "what answers at the worker's URL is not a worker: check MODAL_ENDPOINT_URL",
                details={"reason": "not_json"},
            ) from error

    # --- one attempt --------------------------------------------------------------------------

    async def _once(
        self, request: GenerateRequest, deadline: float, on_event: OnEvent | None
    ) -> GenerateResult:
        started = time.monotonic()
        try:
            return await self._exchange(request, on_event)
        except _MaybeRunning as error:
            await self._wait_until_ended(request, started, deadline)
            raise GenerationFailed(
                "the connection to the worker broke while it was drawing",
                details={"reason": "connection_lost"},
            ) from error

    async def _exchange(self, request: GenerateRequest, on_event: OnEvent | None) -> GenerateResult:
        """POST, then GET as long as Modal says 303, and read the answer."""
        read_s = request.timeout + _ANSWER_MARGIN_S
        timeout = httpx2.Timeout(30.0, connect=_CONNECT_S, read=read_s)
        accept = "text/event-stream" if on_event else "application/json"
        method, url, body = "POST", self._url, dump_request(request)
        for _ in range(_MAX_REDIRECTS):
            headers = {"Accept": accept}
            if method == "POST":
                headers["Content-Type"] = "application/json"
            try:
                async with self._client.stream(
                    method,
                    url,
                    content=body if method == "POST" else None,
                    headers=headers,
                    timeout=timeout,
                ) as answer:
                    if answer.status_code == 303:
                        method, url = "GET", self._next_url(url, answer)
                        continue
                    return await self._read(answer, on_event)
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
                if method == "GET":
                    # The work goes on at Modal: ask for its result again.
                    await asyncio.sleep(_POLL_S)
                    continue
                raise _unreachable(error) from error
            except httpx2.HTTPError as error:
                if method == "GET":
                    await asyncio.sleep(_POLL_S)
                    continue
                raise _MaybeRunning from error
        raise GenerationFailed("the worker's URL redirects without end")

    def _next_url(self, url: str, answer: httpx2.Response) -> str:
        """Where a 303 says the result will be; the same place again where it says nothing.

        Raises:
            GenerationFailed: it leads to another origin, which must not get our credentials.
        """
        location = answer.headers.get("location")
        if not location:
            return url
        target = urljoin(url, location)
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            raise GenerationFailed(
                "the worker's URL redirects to another host, which is not followed",
                details={"reason": "not_json"},
            )
        return target

    async def _read(self, answer: httpx2.Response, on_event: OnEvent | None) -> GenerateResult:
        streams = answer.headers.get("content-type", "").startswith("text/event-stream")
        if streams and answer.status_code == 200:
            return await self._read_stream(answer, on_event)
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > _MAX_ANSWER_BYTES:
                raise GenerationFailed(
                    f"the worker's answer is larger than {_MAX_ANSWER_BYTES} bytes",
                    details={"reason": "too_large"},
                )
        if answer.status_code != 200:
            header = answer.headers.get("retry-after")
            raise error_from_answer(answer.status_code, bytes(body), header)
        return read_result(bytes(body))

    async def _read_stream(
        self, answer: httpx2.Response, on_event: OnEvent | None
    ) -> GenerateResult:
        async with aclosing(read_events(answer.aiter_bytes(), _MAX_ANSWER_BYTES)) as events:
            async for data in events:
                try:
                    event = _EVENT.validate_json(data)
                except ValidationError:
                    continue  # a newer worker's event
                if isinstance(event, ResultEvent):
                    return event.result
                if isinstance(event, ErrorEvent):
                    raise from_body(event.error, event.status)
                if on_event is not None:
                    await on_event(event)
        raise _MaybeRunning

    async def _wait_until_ended(
        self, request: GenerateRequest, started: float, deadline: float
    ) -> None:
        """Return once the run that was cut off cannot be going on any more."""
        certain = started + request.timeout
        while (now := time.monotonic()) < min(certain, deadline):
            await asyncio.sleep(_POLL_S)
            if request.request_id is None:
                continue
            state = await self._state(request.request_id)
            if state == "succeeded" or (state == "unknown" and not self._many_containers):
                return
            if state is None and not self._many_containers and now - started > request.timeout:
                return

    async def _state(self, request_id: str) -> str | None:
        """What the worker says of a request; None while nobody answers."""
        try:
            answer = await self._client.get(f"{self._base}/requests/{request_id}")
            return str(answer.json()["state"]) if answer.status_code == 200 else None
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            return None


def _unreachable(error: Exception) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"the worker cannot be reached ({type(error).__name__})",
        details={"reason": "unreachable"},
    )
