"""What the backend takes for the worker's model while it is not yet known."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.services.worker import base_model as module
from app.services.worker.base_model import BaseModel
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.result import Health

SMALL = BaseModelSignature(
    name="small", family="SDXL", cross_attention_dim=160, text_encoder_hidden_sizes=(64, 96)
)


class _NoDatabase:
    """The row that was kept is none, and nothing is kept."""

    def session(self) -> _NoDatabase:
        return self

    async def __aenter__(self) -> _NoDatabase:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class _Source:
    """Answers late for the first `slow` looks, or with `error` always."""

    def __init__(self, health: Health, slow: int = 0, error: Exception | None = None) -> None:
        self.health_answer, self.slow, self.error, self.looks = health, slow, error, 0

    async def health(self, *, include_modules: bool = False) -> Health:
        self.looks += 1
        if self.error:
            raise self.error
        if self.looks <= self.slow:
            raise TimeoutError
        await asyncio.sleep(0)
        return self.health_answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    class NothingKept:
        def __init__(self, _: object) -> None: ...

        async def get(self, _: str) -> None: ...

        async def put(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "BaseModelRepository", NothingKept)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_FIRST_SECONDS", 5.0)


def ready() -> Health:
    return Health.model_validate(
        {
            "status": "ready",
            "base_model": "small",
            "gpu": "cpu",
            "limits": {},
            "signature": SMALL.model_dump(),
        }
    )


def model(source: _Source) -> BaseModel:
    database: Any = _NoDatabase()
    return BaseModel(source, database, "http://127.0.0.1:8001")


async def test_a_slow_worker_is_waited_for_before_a_lora_is_held_against_a_guess() -> None:
    source = _Source(ready(), slow=3)

    found = await model(source).signature()

    assert found is not None
    assert found.cross_attention_dim == 160


async def test_a_worker_that_hangs_keeps_nobody_waiting_once_its_model_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FRESH_SECONDS", 0.0)
    source = _Source(ready())
    known = model(source)
    await known.look()
    assert known.limits is not None
    assert known.limits.native_size == source.health_answer.limits.native_size
    answers = asyncio.Event()

    async def hang(*, include_modules: bool = False) -> Health:
        await answers.wait()
        limits = source.health_answer.limits.model_copy(update={"native_size": 512})
        return source.health_answer.model_copy(update={"limits": limits})

    source.health = hang  # type: ignore[method-assign]
    watch = asyncio.create_task(known.watch(every_s=3600))
    try:
        for _ in range(5):
            await asyncio.sleep(0.02)
            assert known.limits.native_size != 512
        answers.set()
        async with asyncio.timeout(30):  # asking is what has it looked at, long before the hour
            while known.limits.native_size != 512:
                await asyncio.sleep(0.02)
    finally:
        watch.cancel()


async def test_a_worker_that_is_down_is_not_waited_for() -> None:
    source = _Source(ready(), error=GenerationFailed("down"))

    assert await model(source).signature() is None
    assert source.looks == 1
