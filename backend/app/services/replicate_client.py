"""The fallback provider: an SDXL model on Replicate, over its public HTTP API.

Duty: turn a request into a prediction, wait for it, fetch the picture. What that model cannot do
(several LoRAs, other formats) is refused, not left out.
Must not know: the SDXL worker.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
from typing import Any

import httpx2
from PIL import Image

from app.core.settings import Settings
from app.services.modal_sdxl_lora_client import BuildRequest, InferenceOutcome, OnEvent
from app.services.worker_answer import decode_images
from sdxl_contract.errors import (
    ContractError,
    GenerationFailed,
    LoraLoadFailed,
    ModelLoadFailed,
    Overloaded,
    RequestTimeout,
    Unauthorized,
)
from sdxl_contract.request import GenerateRequest, OutputFormat
from sdxl_contract.result import GenerateResult, Health, HealthStatus, Metadata, ModelInfo

API_URL = "https://api.replicate.com"
_POLL_S = 1.0


class ReplicateClient:
    """Draws with one version of a model on Replicate that takes a LoRA's URL.

    Args:
        token: Replicate's API token.
        version: the model version's id.
        api_url: for tests.
    """

    name = "replicate"

    def __init__(
        self, token: str, version: str, *, api_url: str = API_URL, poll_s: float = _POLL_S
    ) -> None:
        self._version = version
        self._poll_s = poll_s
        self._client = httpx2.AsyncClient(
            base_url=api_url, headers={"Authorization": f"Bearer {token}"}, timeout=60.0
        )
        # Without the token: the picture lies on another host.
        self._files = httpx2.AsyncClient(timeout=60.0)
        self._running: dict[str, str] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> ReplicateClient | None:
        """The client, or None where no token or version is set."""
        token, version = settings.replicate_api_token, settings.replicate_model_version
        if token is None or version is None:
            return None
        return cls(token.get_secret_value(), version)

    async def generate(
        self,
        build_request: BuildRequest,
        *,
        request_id: str | None = None,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> InferenceOutcome:
        """Draw one request; see `ModalSdxlLoraClient.generate`. Progress is not reported.

        Raises:
            ContractError: it could not be drawn.
        """
        started = time.monotonic()
        request = await build_request()
        try:
            async with asyncio.timeout(deadline_s):
                prediction = await self._predict(request, request_id)
                data = await self._picture(prediction)
        except TimeoutError as error:
            raise RequestTimeout(f"no picture within {deadline_s:g} s") from error
        except httpx2.HTTPError as error:
            raise ModelLoadFailed("the fallback provider cannot be reached") from error
        finally:
            if request_id is not None:
                self._running.pop(request_id, None)
        result = _result(request, data, time.monotonic() - started)
        images = await asyncio.to_thread(decode_images, result, request)
        return InferenceOutcome(result, images, self.name, 1)

    async def _predict(self, request: GenerateRequest, request_id: str | None) -> dict[str, Any]:
        body = {"version": self._version, "input": _inputs(request)}
        answer = await self._client.post("/v1/predictions", json=body)
        prediction = self._checked(answer)
        if request_id is not None:
            self._running[request_id] = str(prediction["id"])
        while prediction["status"] in ("starting", "processing"):
            await asyncio.sleep(self._poll_s)
            prediction = self._checked(
                await self._client.get(f"/v1/predictions/{prediction['id']}")
            )
        if prediction["status"] != "succeeded":
            raise GenerationFailed(f"the fallback provider's run ended as {prediction['status']}")
        return prediction

    async def _picture(self, prediction: dict[str, Any]) -> bytes:
        output = prediction.get("output")
        url = output[0] if isinstance(output, list) and output else output
        if not isinstance(url, str) or not url.startswith(("https://", "http://127.0.0.1")):
            raise GenerationFailed("the fallback provider's answer holds no picture")
        answer = await self._files.get(url)
        answer.raise_for_status()
        return answer.content

    async def cancel(self, request_id: str) -> bool:
        """Stop a running prediction."""
        prediction = self._running.get(request_id)
        if prediction is None:
            return False
        try:
            answer = await self._client.post(f"/v1/predictions/{prediction}/cancel")
        except httpx2.HTTPError:
            return False
        return answer.status_code == 200

    async def health(self, *, include_modules: bool = False) -> Health:
        """Ready as far as can be known without paying for a run."""
        return Health(status=HealthStatus.READY, base_model="replicate", gpu="replicate")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        await self._files.aclose()

    @staticmethod
    def _checked(answer: httpx2.Response) -> dict[str, Any]:
        error: ContractError | None = None
        if answer.status_code in (401, 403):
            error = Unauthorized("the fallback provider refused REPLICATE_API_TOKEN")
        elif answer.status_code == 429:
            error = Overloaded("the fallback provider takes no more requests now")
        elif answer.status_code == 422:
            error = GenerationFailed("the fallback provider's model does not take this request")
        elif answer.status_code >= 400:
            error = ModelLoadFailed(f"the fallback provider answered {answer.status_code}")
        if error is not None:
            raise error
        prediction: dict[str, Any] = answer.json()
        if "id" not in prediction or "status" not in prediction:
            raise GenerationFailed("the fallback provider's answer lacks a field")
        return prediction


def _inputs(request: GenerateRequest) -> dict[str, Any]:
    refs = request.lora_refs()
    if len(refs) > 1:
        raise LoraLoadFailed(
            "the fallback provider takes one LoRA at a time", details={"field": "loras"}
        )
    if request.num_images > 1 or request.output_format is not OutputFormat.PNG:
        raise GenerationFailed("the fallback provider draws one PNG at a time")
    inputs: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width or 1024,
        "height": request.height or 1024,
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg,
        "num_outputs": 1,
        "output_format": "png",
    }
    if request.seed is not None:
        inputs["seed"] = request.seed
    if refs:
        inputs |= {"replicate_weights": refs[0].url, "lora_scale": refs[0].scale}
    return inputs


def _result(request: GenerateRequest, data: bytes, seconds: float) -> GenerateResult:
    try:
        size = Image.open(io.BytesIO(data)).size
    except OSError as error:
        raise GenerationFailed("the fallback provider's picture is damaged") from error
    refs = request.lora_refs()
    return GenerateResult(
        image_base64=base64.b64encode(data).decode(),
        image_size=size,
        generation_time_seconds=seconds,
        model_info=ModelInfo(
            base_model="replicate",
            lora_applied=bool(refs),
            lora_scale=refs[0].scale if refs else None,
        ),
        metadata=Metadata(
            seed_used=request.seed or 0, actual_steps=request.steps, actual_cfg=request.cfg
        ),
        image_sha256=hashlib.sha256(data).hexdigest(),
    )
