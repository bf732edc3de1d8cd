"""What the backend needs of whoever draws: the seam that tests put a double at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from app.core.tracing import span
from app.services.modal_sdxl_lora_client import InferenceOutcome, OnEvent
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import Health


class Inference(Protocol):
    """Draws pictures; `LoraInference` is the real one."""

    async def generate(
        self,
        build_request: Callable[[], Awaitable[GenerateRequest]],
        *,
        request_id: str,
        deadline_s: float,
        on_event: OnEvent | None = None,
    ) -> InferenceOutcome:
        """Draw. Raises ContractError on failure, after the retries that the contract allows."""

    async def cancel(self, request_id: str) -> bool:
        """Ask the worker to stop a request; whether it knew it."""

    async def health(self, *, include_modules: bool = False) -> Health:
        """The worker's state."""

    async def aclose(self) -> None:
        """Close every connection."""


class TracedInference:
    """Another one, with a span around each call for a picture."""

    def __init__(self, inner: Inference) -> None:
        self._inner = inner

    async def generate(
        self,
        build_request: Callable[[], Awaitable[GenerateRequest]],
        *,
        request_id: str,
        deadline_s: float,
        on_event: OnEvent | None = None,
    ) -> InferenceOutcome:
        """Draw; the span tells who did and in how many attempts."""
        with span("worker.call", content=request_id) as current:
            outcome = await self._inner.generate(
                build_request, request_id=request_id, deadline_s=deadline_s, on_event=on_event
            )
            current.set_attributes({"provider": outcome.provider, "attempts": outcome.attempts})
            return outcome

    async def cancel(self, request_id: str) -> bool:
        """Ask the worker to stop."""
        return await self._inner.cancel(request_id)

    async def health(self, *, include_modules: bool = False) -> Health:
        """The worker's state."""
        return await self._inner.health(include_modules=include_modules)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()
