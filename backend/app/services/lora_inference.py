"""Chooses who draws: the SDXL worker, or the fallback provider.

Duty: the provider that LORA_PROVIDER names; the fallback where one is set up and the first one's
circuit is open or it is out of service; a record of who made each picture.
Must not know: how a provider is spoken to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from app.core.settings import LoraProvider, Settings
from app.services.modal_sdxl_lora_client import (
    BuildRequest,
    InferenceOutcome,
    ModalSdxlLoraClient,
    OnEvent,
)
from app.services.worker.replicate import ReplicateClient
from sdxl_contract.errors import ContractError, ErrorCode, ModelLoadFailed
from sdxl_contract.result import Health

log = structlog.get_logger()

# Failures that say the provider is out of service, not that the request is wrong.
_OUT_OF_SERVICE = frozenset({ErrorCode.MODEL_LOAD_FAILED, ErrorCode.UNAUTHORIZED})
# Failures with which it shows that it is in service.
_IN_SERVICE = frozenset(
    {
        ErrorCode.INVALID_PROMPT,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.LORA_DOWNLOAD_FAILED,
        ErrorCode.LORA_LOAD_FAILED,
        ErrorCode.IMAGE_DOWNLOAD_FAILED,
        ErrorCode.IMAGE_LOAD_FAILED,
        ErrorCode.CONTENT_REFUSED,
        ErrorCode.CUDA_OOM,
        ErrorCode.OVERLOADED,
    }
)


class InferenceProvider(Protocol):
    """Somebody who draws."""

    name: str

    async def generate(
        self,
        build_request: BuildRequest,
        *,
        request_id: str | None = None,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> InferenceOutcome: ...
    async def cancel(self, request_id: str) -> bool: ...
    async def health(self, *, include_modules: bool = False) -> Health: ...
    async def aclose(self) -> None: ...


@dataclass
class CircuitBreaker:
    """Stops asking a provider that is out of service; lets one request try after a while.

    Args:
        threshold: failures in a row that open it.
        cool_down_s: seconds until one request may try again.
        now: seconds of a monotonic clock.
    """

    threshold: int = 5
    cool_down_s: float = 30.0
    now: Callable[[], float] = time.monotonic
    _failures: int = 0
    _opened_at: float | None = None

    def allows(self) -> bool:
        """Whether a request may be sent now; after the cool-down one may, once."""
        if self._opened_at is None:
            return True
        if self.now() - self._opened_at < self.cool_down_s:
            return False
        self._opened_at = self.now()
        return True

    def succeeded(self) -> None:
        """Close it."""
        self._failures, self._opened_at = 0, None

    def failed(self) -> None:
        """Count one failure; at the threshold open."""
        self._failures += 1
        if self._failures >= self.threshold:
            self._opened_at = self.now()


class LoraInference:
    """The router that the rest of the backend calls.

    Args:
        primary: asked first.
        fallback: asked where the first is out of service.
    """

    def __init__(
        self,
        primary: InferenceProvider,
        fallback: InferenceProvider | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._primary = primary
        self._fallback = fallback
        self._breaker = breaker or CircuitBreaker()

    async def generate(
        self,
        build_request: BuildRequest,
        *,
        request_id: str,
        deadline_s: float,
        on_event: OnEvent | None = None,
    ) -> InferenceOutcome:
        """Draw one request; `outcome.provider` says who did.

        Raises:
            ContractError: nobody could.
        """
        deadline = time.monotonic() + deadline_s
        fallback = self._fallback
        if fallback is not None and not self._breaker.allows():
            return await fallback.generate(
                build_request, request_id=request_id, deadline_s=deadline_s, on_event=on_event
            )
        try:
            outcome = await self._primary.generate(
                build_request, request_id=request_id, deadline_s=deadline_s, on_event=on_event
            )
        except ContractError as error:
            if error.code in _IN_SERVICE:
                self._breaker.succeeded()
            if error.code not in _OUT_OF_SERVICE:
                raise
            self._breaker.failed()
            if fallback is None:
                raise
            log.warning(
                "provider_fallback",
                request_id=request_id,
                failed=self._primary.name,
                code=error.code.value,
                now=fallback.name,
            )
            return await fallback.generate(
                build_request,
                request_id=request_id,
                deadline_s=max(0.0, deadline - time.monotonic()),
                on_event=on_event,
            )
        self._breaker.succeeded()
        return outcome

    async def cancel(self, request_id: str) -> bool:
        """Stop a running request; whether somebody was running it."""
        if await self._primary.cancel(request_id):
            return True
        return self._fallback is not None and await self._fallback.cancel(request_id)

    async def health(self, *, include_modules: bool = False) -> Health:
        """The first provider's state."""
        return await self._primary.health(include_modules=include_modules)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._primary.aclose()
        if self._fallback is not None:
            await self._fallback.aclose()


class _Unset:
    """Stands where no worker is set up, so that the rest of the backend still runs."""

    name = "none"

    async def generate(self, *_: object, **__: object) -> InferenceOutcome:
        raise self._error()

    async def cancel(self, request_id: str) -> bool:
        return False

    async def health(self, *, include_modules: bool = False) -> Health:
        raise self._error()

    async def aclose(self) -> None:
        return None

    @staticmethod
    def _error() -> ModelLoadFailed:
        return ModelLoadFailed(
            "no worker is set up: set MODAL_ENDPOINT_URL",
            details={"reason": "modal_not_deployed"},
        )


def build_lora_inference(settings: Settings) -> LoraInference:
    """The router that the settings describe."""
    worker: InferenceProvider = (
        ModalSdxlLoraClient.from_settings(settings, awaits_worker=False)
        if settings.modal_endpoint_url
        else _Unset()
    )
    replicate = ReplicateClient.from_settings(settings)
    if settings.lora_provider is LoraProvider.REPLICATE:
        if replicate is None:
            raise ValueError(
                "LORA_PROVIDER is replicate, so REPLICATE_API_TOKEN and REPLICATE_MODEL_VERSION "
                "must be set"
            )
        return LoraInference(replicate)
    return LoraInference(worker, replicate)
