"""The fallback provider: an SDXL model on Replicate, over its public HTTP API.

Duty: turn a request into a prediction, wait for it, fetch the picture. What that model cannot do
(several LoRAs, other formats) is refused, not left out.
Must not know: the SDXL worker.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import math
import secrets
import time
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from PIL import Image

from app.core.pools import Duty, in_pool
from app.core.settings import Settings
from app.services.modal_sdxl_lora_client import BuildRequest, InferenceOutcome, OnEvent
from app.services.worker.answer import decode_images
from sdxl_contract.errors import (
    Cancelled,
    ContractError,
    GenerationFailed,
    LoraLoadFailed,
    ModelLoadFailed,
    Overloaded,
    RequestTimeout,
    Unauthorized,
)
from sdxl_contract.limits import SEED_MAX
from sdxl_contract.prompts.words import PromptSyntax
from sdxl_contract.request import GenerateRequest, OutputFormat, Scheduler
from sdxl_contract.result import GenerateResult, Health, HealthStatus, Metadata, ModelInfo

API_URL = "https://api.replicate.com"
_POLL_S = 1.0
_CANCEL_S = 5.0
_MAX_PICTURE_BYTES = 64 * 2**20
_UNDER_WAY = ("starting", "processing", "queued")


class ReplicateClient:
    """Draws with one version of a model on Replicate that takes a LoRA's URL.

    A prediction is asked for once: whether a lost answer started one cannot be known.

    Args:
        token: Replicate's API token.
        version: the model version's id.
        api_url: for tests.
        poll_s: seconds between two looks at a prediction.
    """

    name = "replicate"

    def __init__(
        self, token: str, version: str, *, api_url: str = API_URL, poll_s: float = _POLL_S
    ) -> None:
        self._version = version
        self._poll_s = poll_s
        self._api = urlsplit(api_url)
        self._client = httpx2.AsyncClient(
            base_url=api_url, headers={"Authorization": f"Bearer {token}"}, timeout=60.0
        )
        # Without the token: the picture lies on another host.
        self._files = httpx2.AsyncClient(timeout=60.0)
        self._running: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(host={self._api.hostname!r})"

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
        if request.seed is None:  # so that the seed that is reported is the one that was used
            request = request.model_copy(update={"seed": secrets.randbelow(SEED_MAX + 1)})
        try:
            async with asyncio.timeout(deadline_s):
                output = await self._predict(request, request_id)
                data = await self._picture(output)
        except TimeoutError as error:
            raise RequestTimeout(
                f"no picture within {deadline_s or math.inf:g} s", details={"reason": "deadline"}
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ModelLoadFailed(
                f"the fallback provider cannot be reached ({type(error).__name__})",
                details={"reason": "unreachable"},
            ) from error
        result = _result(request, data, time.monotonic() - started)
        images = await in_pool(Duty.IMAGES, decode_images, result, request)
        return InferenceOutcome(result, images, self.name, 1)

    async def _predict(self, request: GenerateRequest, request_id: str | None) -> object:
        """The output of a new prediction; one that is not waited for to its end is cancelled."""
        body = {"version": self._version, "input": _inputs(request)}
        prediction = _checked(await self._client.post("/v1/predictions", json=body))
        place = f"/v1/predictions/{quote(str(prediction['id']), safe='')}"
        if request_id is not None:
            self._running[request_id] = place
        ended = prediction["status"] not in _UNDER_WAY
        try:
            while not ended:
                await asyncio.sleep(self._poll_s)
                found = await self._look(place)
                if found is not None:
                    prediction, ended = found, found["status"] not in _UNDER_WAY
        finally:
            if request_id is not None:
                self._running.pop(request_id, None)
            if not ended:
                await asyncio.shield(self._stop(place))
        status = prediction["status"]
        if status in ("canceled", "aborted"):
            raise Cancelled("the fallback provider's run was stopped")
        if status != "succeeded":
            raise GenerationFailed("the fallback provider's run failed")
        return prediction.get("output")

    async def _look(self, place: str) -> dict[str, Any] | None:
        """The prediction now; None where the provider is busy: the run goes on all the same."""
        try:
            answer = await self._client.get(place)
        except httpx2.HTTPError:
            return None
        if answer.status_code == 429 or answer.status_code >= 500:
            return None
        return _checked(answer)

    async def _stop(self, place: str) -> bool:
        """Cancel a prediction; whether the provider took it."""
        with contextlib.suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                answer = await self._client.post(f"{place}/cancel")
                return answer.status_code == 200
        return False

    async def _picture(self, output: object) -> bytes:
        url = output[0] if isinstance(output, list) and output else output
        if not isinstance(url, str) or not self._may_fetch(url):
            raise GenerationFailed("the fallback provider's answer holds no picture")
        data = bytearray()
        async with self._files.stream("GET", url) as answer:
            if answer.status_code != 200:
                raise GenerationFailed(
                    f"the fallback provider's picture cannot be fetched: {answer.status_code}"
                )
            async for chunk in answer.aiter_bytes():
                data += chunk
                if len(data) > _MAX_PICTURE_BYTES:
                    raise GenerationFailed("the fallback provider's picture is too large")
        return bytes(data)

    def _may_fetch(self, url: str) -> bool:
        """https anywhere, or what the API's own host serves (a test's on loopback)."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        return parts.scheme == "https" or (parts.scheme, parts.netloc) == self._api[:2]

    async def cancel(self, request_id: str) -> bool:
        """Stop a running prediction."""
        place = self._running.get(request_id)
        return place is not None and await self._stop(place)

    async def health(self, *, include_modules: bool = False) -> Health:
        """Ready as far as can be known without paying for a run."""
        return Health(status=HealthStatus.READY, base_model="replicate", gpu="replicate")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        await self._files.aclose()


def _checked(answer: httpx2.Response) -> dict[str, Any]:
    """The prediction in an answer of the API."""
    error: ContractError | None = None
    if answer.status_code in (401, 403):
        error = Unauthorized("the fallback provider refused REPLICATE_API_TOKEN")
    elif answer.status_code == 402:
        error = ModelLoadFailed("the fallback provider asks for money: look at its billing page")
    elif answer.status_code == 429:
        error = Overloaded("the fallback provider takes no more requests now")
    elif answer.status_code == 422:
        error = GenerationFailed("the fallback provider's model does not take this request")
    elif answer.status_code not in (200, 201, 202):
        error = ModelLoadFailed(f"the fallback provider answered {answer.status_code}")
    if error is not None:
        raise error
    try:
        prediction = answer.json()
        if isinstance(prediction["id"], str) and isinstance(prediction["status"], str):
            return dict(prediction)
    except (ValueError, KeyError, TypeError):
        pass
    raise GenerationFailed("the fallback provider's answer lacks a field")


def _inputs(request: GenerateRequest) -> dict[str, Any]:
    refs = request.lora_refs()
    if len(refs) > 1:
        raise LoraLoadFailed(
            "the fallback provider takes one LoRA at a time", details={"field": "loras"}
        )
    for field in (
        "image", "guidance_rescale", "hires", "upscale", "clip_skip", "prompt_syntax", "embeddings",
        "controls", "references",
    ):  # fmt: skip
        if getattr(request, field) not in (None, 0.0, [], PromptSyntax.WEIGHTS):
            raise GenerationFailed(
                f"the fallback provider does not take {field}", details={"field": field}
            )
    if request.num_images > 1 or request.output_format is not OutputFormat.PNG:
        raise GenerationFailed("the fallback provider draws one PNG at a time")
    if request.scheduler is not Scheduler.DEFAULT:
        raise GenerationFailed(
            "the fallback provider does not take a sampler", details={"field": "scheduler"}
        )
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
        size = Image.open(io.BytesIO(data), formats=["PNG"]).size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
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
