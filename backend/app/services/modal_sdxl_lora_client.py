"""Calls the SDXL worker, on Modal or anywhere else.

Duty: one picture out of a worker that may be cold, busy, restarting or gone, within a deadline;
retry only what the contract allows, and only once the attempt before has ended (see
`worker_exchange`).
Must not know: databases, buckets, users.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2
import stamina

from app.core.pools import Duty, in_pool
from app.core.settings import Settings
from app.core.tracing import add_trace_header
from app.services.worker.answer import (
    DecodedImage,
    decode_images,
    error_from_answer,
    read_health,
    redact_error,
)
from app.services.worker.exchange import (
    CONNECT_S,
    GENERATE_PATH,
    OnEvent,
    WorkerExchange,
    affinity_headers,
    unreachable,
)
from app.services.worker.retry import Failures, RetryPolicy, retry_after
from sdxl_contract.errors import ContractError, ModelLoadFailed, RequestTimeout
from sdxl_contract.redaction import long_enough
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import GenerateResult, Health

__all__ = ["BuildRequest", "InferenceOutcome", "ModalSdxlLoraClient", "OnEvent"]

BuildRequest = Callable[[], Awaitable[GenerateRequest]]

# Less than any server's: a request never goes out on a connection that is just being closed.
_KEEP_ALIVE_S = 2.0
_POLL_S = 0.5


@dataclass(frozen=True)
class InferenceOutcome:
    """Pictures that were looked at, and how they came about."""

    result: GenerateResult
    images: list[DecodedImage] = field(repr=False)
    provider: str
    attempts: int


class ModalSdxlLoraClient:
    """An async client of one worker. Use it as a context manager, or call `aclose`.

    Args:
        endpoint_url: the worker's `…/generate-image`, or its base URL.
        control_url: answers health, states and cancels where that is not the worker's own URL, so
            that they wait behind no picture and start no GPU.
        api_token: the worker's bearer token.
        proxy_key, proxy_secret: Modal's proxy auth (`wk-…`, `ws-…`).
        timeout_s: for one picture, all attempts included, unless a call says otherwise.
        policy: how often to retry.
        many_containers: whether several workers may answer at the URL, so that one of them does
            not know what another draws. Left out: yes for Modal and every other https URL.
        poll_s: seconds between two looks at a request that is under way.
        transport: for tests.
    """

    name = "modal_sdxl_lora"

    def __init__(
        self,
        endpoint_url: str,
        *,
        control_url: str | None = None,
        api_token: str | None = None,
        proxy_key: str | None = None,
        proxy_secret: str | None = None,
        timeout_s: float = 300.0,
        policy: RetryPolicy | None = None,
        many_containers: bool | None = None,
        poll_s: float = _POLL_S,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        base = endpoint_url.rstrip("/")
        self._base = base.removesuffix(GENERATE_PATH)
        self._control = (control_url or self._base).rstrip("/")
        # Of the requests that are under way, by id: a cancel must find the same container.
        self._affinity: dict[str, dict[str, str]] = {}
        self._timeout_s = timeout_s
        self._policy = policy or RetryPolicy()
        self._secrets = long_enough(api_token, proxy_key, proxy_secret)
        headers: dict[str, str] = {}
        if api_token:
            headers["Authorization"] = f"Bearer {api_token}"
        if proxy_key and proxy_secret:
            headers |= {"Modal-Key": proxy_key, "Modal-Secret": proxy_secret}
        self._client = httpx2.AsyncClient(
            headers=headers,
            follow_redirects=False,
            timeout=httpx2.Timeout(30.0, connect=CONNECT_S),
            limits=httpx2.Limits(keepalive_expiry=_KEEP_ALIVE_S),
            event_hooks={"request": [add_trace_header]},
            transport=transport,
        )
        if many_containers is None:
            many_containers = base.startswith("https://") or proxy_key is not None
        self._exchange = WorkerExchange(
            self._client,
            self._base,
            control=self._control,
            many_containers=many_containers,
            poll_s=poll_s,
            secrets=self._secrets,
        )

    @classmethod
    def from_settings(
        cls, settings: Settings, *, awaits_worker: bool = True
    ) -> ModalSdxlLoraClient:
        """The client that the backend's settings describe.

        `awaits_worker`: see `RetryPolicy`.

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
            control_url=settings.modal_control_url,
            api_token=secret("modal_api_token"),
            proxy_key=secret("modal_proxy_key"),
            proxy_secret=secret("modal_proxy_secret"),
            timeout_s=settings.modal_timeout_seconds,
            policy=RetryPolicy(
                settings.modal_max_retries, settings.modal_retry_backoff_base, awaits_worker
            ),
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
        trouble: list[str] = []

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
                        trouble.clear()
                        request = await build_request()
                        if request_id is not None:
                            request = request.model_copy(update={"request_id": request_id})
                        result, images = await self._attempt(request, on_event, trouble)
                        return InferenceOutcome(result, images, self.name, attempts)
        except TimeoutError as error:
            tried = "1 attempt" if attempts == 1 else f"{attempts} attempts"
            raise RequestTimeout(
                ": ".join([f"no picture within {total_s:g} s and {tried}", *trouble]),
                details={"reason": "deadline"},
            ) from error
        raise AssertionError("stamina ends with a return or an exception")

    async def _attempt(
        self, request: GenerateRequest, on_event: OnEvent | None, trouble: list[str]
    ) -> tuple[GenerateResult, list[DecodedImage]]:
        if request.request_id is not None:
            self._affinity[request.request_id] = affinity_headers(request)
        try:
            result = await self._exchange.attempt(request, on_event, trouble)
        except ContractError as error:
            redact_error(error, self._secrets)
            raise
        finally:
            self._affinity.pop(request.request_id or "", None)
        return result, await in_pool(Duty.IMAGES, decode_images, result, request)

    async def cancel(self, request_id: str) -> bool:
        """Ask the worker to stop a request; True when it was running there."""
        try:
            answer = await self._client.post(
                f"{self._control}/requests/{request_id}/cancel",
                headers=self._affinity.get(request_id),
            )
            return answer.status_code == 202 and answer.json()["state"] == "cancelling"
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            return False

    async def health(self, *, include_modules: bool = False) -> Health:
        """What the worker says of itself, also while it loads or has failed.

        Raises:
            ModelLoadFailed: nobody answers, or it is no worker.
            ContractError: Modal, or what stands before the worker, says why it cannot be asked.
        """
        query = {"include": "modules"} if include_modules else None
        try:
            answer = await self._client.get(f"{self._control}/health", params=query)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise unreachable(error) from error
        try:
            return read_health(answer.content, self._secrets)
        except ValueError as error:
            if answer.status_code in (200, 404):
                raise ModelLoadFailed(
                    "what answers at the worker's URL is not a worker: check MODAL_ENDPOINT_URL",
                    details={"reason": "not_json"},
                ) from error
            foreign = error_from_answer(answer.status_code, answer.content, None)
            redact_error(foreign, self._secrets)
            raise foreign from error
