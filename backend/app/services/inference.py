"""What the backend needs of whoever draws: the seam that tests put a double at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

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
