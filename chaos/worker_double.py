"""A worker double: the worker's HTTP face without a model, and as unreliable as it is told.

It draws a one-colour PNG that depends on the request alone, so that every stored picture can be
checked against what was asked. It really fetches LoRAs by their signed URLs. It knows a repeated
request by its id, as the real worker does, and forgets everything when it is killed.
Must not know: backends, databases, buckets.

Environment: DOUBLE_PORT, DOUBLE_SECONDS (drawing), DOUBLE_BEHAVIOURS (JSON: behaviour to weight),
DOUBLE_SEED, DOUBLE_LATE_SECONDS (wait of `late` before it fetches), DOUBLE_SIDE (px), DOUBLE_PHOTO
(1: the same picture for every request, as many bytes as a photograph's).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import io
import json
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from sdxl_contract.errors import (
    ContractError,
    CudaOutOfMemory,
    GenerationFailed,
    LoraDownloadFailed,
    Overloaded,
)
from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import GenerateRequest, parse_request
from sdxl_contract.result import (
    Cost,
    GenerateResult,
    Health,
    HealthStatus,
    LoraReport,
    Metadata,
    ModelInfo,
    Timings,
)

SIDE = 64  # px, unless DOUBLE_SIDE says otherwise
BEHAVIOURS = ("ok", "late", "slow", "busy", "crash", "no_memory", "garbage", "damaged", "redirect",
              "cut")  # fmt: skip
_SLOW_TIMES = 8
_REDIRECTS = 3


def draw(prompt: str, seed: int, side: int = SIDE) -> bytes:
    """The one PNG of `side` x `side` px that a prompt and a seed give."""
    colour = tuple(hashlib.sha256(f"{prompt}|{seed}".encode()).digest()[:3])
    picture = Image.new("RGB", (side, side), colour)
    mark = hashlib.sha256(f"{seed}|{prompt}".encode()).digest()
    for x, value in enumerate(mark):
        picture.putpixel((x, 0), (value, value, value))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@functools.cache
def photo(side: int) -> bytes:
    """A PNG that packs as a photograph does; made once, so that what draws it is not measured."""
    noise = random.Random(side).randbytes(3 * side * side)
    slope = bytes(160 * place // (3 * side) for place in range(3 * side)) * side
    pixels = bytes(low + (high >> 4) for low, high in zip(slope, noise, strict=True))
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(file, "PNG")
    return file.getvalue()


class WorkerDouble:
    """Requests by their id, running and done."""

    def __init__(
        self,
        seconds: float,
        weights: dict[str, float],
        seed: int,
        late: float,
        side: int = SIDE,
        is_photo: bool = False,
    ) -> None:
        unknown = set(weights) - set(BEHAVIOURS)
        if unknown:
            raise ValueError(f"unknown behaviours: {sorted(unknown)}; known: {BEHAVIOURS}")
        self._seconds = seconds
        self._names, self._weights = list(weights), list(weights.values())
        self._random = random.Random(seed)
        self._late = late
        self.side = side
        self._is_photo = is_photo
        self._running: dict[str, asyncio.Task[GenerateResult]] = {}
        self._done: dict[str, GenerateResult] = {}
        self._were_late: set[str | None] = set()
        self._http = httpx2.AsyncClient(timeout=5)

    def choose(self) -> str:
        """What happens to the next call."""
        return self._random.choices(self._names, self._weights)[0]

    def state(self, request_id: str) -> str:
        """As the worker's `GET /requests/{id}`."""
        if request_id in self._running:
            return "running"
        return "succeeded" if request_id in self._done else "unknown"

    def cancel(self, request_id: str) -> bool:
        """Stop a request; whether it ran."""
        task = self._running.get(request_id)
        return task is not None and task.cancel()

    async def result(self, request: GenerateRequest, behaviour: str) -> GenerateResult:
        """The result of a request; one drawing for all calls with the same id."""
        request_id = request.request_id or ""
        if request_id in self._done:
            return self._done[request_id]
        task = self._running.get(request_id)
        if task is None:
            task = asyncio.create_task(self._draw(request, behaviour))
            self._running[request_id] = task
            task.add_done_callback(lambda _: self._running.pop(request_id, None))
        return await asyncio.shield(task)

    async def _draw(self, request: GenerateRequest, behaviour: str) -> GenerateResult:
        # Once for each request: a URL that expires twice in a row is a clock that is wrong.
        if behaviour == "late" and request.request_id not in self._were_late:
            self._were_late.add(request.request_id)
            await asyncio.sleep(self._late)
        for ref in request.loras:
            await self._fetch(ref.url, ref.sha256)
        await asyncio.sleep(self._seconds * (_SLOW_TIMES if behaviour == "slow" else 1))
        if behaviour == "no_memory":
            raise CudaOutOfMemory("out of memory: try a smaller size")
        seed = request.seed or 0
        data = photo(self.side) if self._is_photo else draw(request.prompt, seed, self.side)
        result = GenerateResult(
            image_base64=base64.b64encode(data).decode(),
            image_size=(self.side, self.side),
            image_sha256=hashlib.sha256(data).hexdigest(),
            generation_time_seconds=self._seconds,
            model_info=ModelInfo(base_model="double", lora_applied=bool(request.loras)),
            metadata=Metadata(
                seed_used=seed, actual_steps=request.steps, actual_cfg=request.cfg, seeds=[seed]
            ),
            loras=[
                LoraReport(
                    sha256=ref.sha256 or "", scale=ref.scale, format="kohya", rank=4,
                    modules_matched=1,
                )
                for ref in request.loras
            ],
            timings=Timings(denoise=self._seconds),
            cost=Cost(usd=0.0, gpu="L4", seconds=self._seconds, usd_per_second=0.0),
            model_clean=True,
        )  # fmt: skip
        if request.request_id:
            self._done[request.request_id] = result
        return result

    async def _fetch(self, url: str, sha256: str | None) -> None:
        try:
            answer = await self._http.get(url)
        except httpx2.HTTPError as error:
            raise LoraDownloadFailed(
                "the LoRA's server cannot be reached",
                details={"reason": "unreachable"},
                status=502,
            ) from error
        if answer.status_code == 403:
            raise LoraDownloadFailed("the LoRA's URL has expired", details={"reason": "expired"})
        if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != sha256:
            raise LoraDownloadFailed(
                "the LoRA's server did not give the file", details={"reason": "http_status"}
            )


def create_app(double: WorkerDouble) -> FastAPI:
    """The double's HTTP face."""
    app = FastAPI()
    waiting: dict[str, GenerateRequest] = {}

    async def answer(request: GenerateRequest, behaviour: str) -> Response:
        try:
            result = await double.result(request, behaviour)
        except ContractError as error:
            return JSONResponse(error.body().model_dump(mode="json"), error.status)
        except asyncio.CancelledError:
            return JSONResponse({"error": "cancelled", "error_code": "CANCELLED"}, 499)
        shown: dict[str, Any] = result.model_dump(mode="json")
        if behaviour == "damaged":
            shown["image_base64"] = shown["image_base64"][:-8]
        return JSONResponse(shown)

    @app.post("/generate-image")
    async def generate(call: Request) -> Response:
        request = parse_request(await call.body())
        behaviour = double.choose()
        if behaviour == "busy":
            error: ContractError = Overloaded("too many requests", retry_after=0.2)
            return JSONResponse(error.body().model_dump(mode="json"), error.status)
        if behaviour == "crash":
            error = GenerationFailed("an internal error")
            return JSONResponse(error.body().model_dump(mode="json"), error.status)
        if behaviour == "garbage":
            return Response('{"image_base64": "AAAA', 200, media_type="application/json")
        if behaviour == "cut":
            return StreamingResponse(_cut(), headers={"Content-Length": "100000"})
        if behaviour == "redirect":
            name = request.request_id or ""
            waiting[name] = request
            return Response(status_code=303, headers={"Location": f"/later/{name}/{_REDIRECTS}"})
        return await answer(request, behaviour)

    @app.get("/later/{name}/{left}")
    async def later(name: str, left: int) -> Response:
        if left > 0:
            await asyncio.sleep(0.05)
            return Response(status_code=303, headers={"Location": f"/later/{name}/{left - 1}"})
        return await answer(waiting[name], "ok")

    @app.get("/health")
    async def health() -> Health:
        return Health(
            status=HealthStatus.READY,
            base_model="double",
            device="cpu",
            gpu="L4",
            limits=ModelLimits(native_size=double.side, min_side=double.side, max_side=double.side),
        )

    @app.get("/requests/{request_id}")
    async def state(request_id: str) -> dict[str, str]:
        return {"request_id": request_id, "state": double.state(request_id)}

    @app.post("/requests/{request_id}/cancel", status_code=202)
    async def cancel(request_id: str) -> dict[str, str]:
        stopped = double.cancel(request_id)
        return {"request_id": request_id, "state": "cancelling" if stopped else "unknown"}

    return app


async def _cut() -> AsyncIterator[bytes]:
    """Less than was promised: the server then breaks the connection."""
    yield b'{"image'


def main() -> None:
    """Listen until killed."""
    double = WorkerDouble(
        float(os.environ.get("DOUBLE_SECONDS", "0.05")),
        json.loads(os.environ.get("DOUBLE_BEHAVIOURS", '{"ok": 1}')),
        int(os.environ.get("DOUBLE_SEED", "1")),
        float(os.environ.get("DOUBLE_LATE_SECONDS", "2.5")),
        int(os.environ.get("DOUBLE_SIDE", str(SIDE))),
        is_photo=os.environ.get("DOUBLE_PHOTO") == "1",
    )
    uvicorn.run(
        create_app(double),
        host="127.0.0.1",
        port=int(os.environ["DOUBLE_PORT"]),
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
