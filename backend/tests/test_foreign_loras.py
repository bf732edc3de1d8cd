"""A stranger's file holds up nobody: it is looked at elsewhere, and for so long only."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterator

import pytest

from app.core.pools import Duty, in_pool
from app.services.foreign.loras import inspect_foreign
from app.services.foreign.processes import ForeignProcesses
from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from testkit.loras.plain_bytes import kohya_lora, safetensors_bytes, sd15_lora

SDXL = BaseModelSignature(
    name="sdxl", family="SDXL", cross_attention_dim=2048, text_encoder_hidden_sizes=(768, 1280)
)
LOOKS = (sys.executable, "-m", "app.services.foreign.lora_process")
SLOW = (sys.executable, "-c", "import time; time.sleep(600)")
DIES = (sys.executable, "-c", "import os; os.read(0, 9); os._exit(1)")


@pytest.fixture(scope="module")
def files() -> Iterator[ForeignProcesses]:
    made = ForeignProcesses(LOOKS, deadline_s=20)
    yield made
    made.close()


async def look(files: ForeignProcesses, data: bytes) -> str:
    return (await inspect_foreign(io.BytesIO(data), len(data), SDXL, files)).algorithm


async def test_a_file_is_inspected_in_another_process_as_it_would_be_here(
    files: ForeignProcesses,
) -> None:
    assert await look(files, kohya_lora()) == "lora"
    for wrong, seems in ((sd15_lora(), "SD 1"), (b"<html>" * 200, "HTML"), (b"", "empty")):
        with pytest.raises(LoraLoadFailed, match=seems) as caught:
            await look(files, wrong)
        assert caught.value.details is not None
        assert caught.value.details["reason"]
    assert files.waiting == 1, "one process served all of them"


async def test_a_refusal_of_one_file_says_nothing_of_the_next(files: ForeignProcesses) -> None:
    with pytest.raises(LoraLoadFailed):
        await look(files, safetensors_bytes({"a.b": (1, 1, 1)}))
    assert await look(files, kohya_lora()) == "lora"


@pytest.mark.parametrize(
    ("command", "reason"), [(SLOW, "too_slow"), (DIES, "too_large")], ids=["slow", "dies"]
)
async def test_a_file_that_takes_too_much_is_refused_and_its_process_ended(
    command: tuple[str, ...], reason: str
) -> None:
    files = ForeignProcesses(command, deadline_s=0.2 if command is SLOW else 20)
    with pytest.raises(LoraLoadFailed) as caught:
        async with asyncio.timeout(60):
            await look(files, kohya_lora())
    assert (caught.value.details or {})["reason"] == reason
    assert files.waiting == 0


async def test_a_duty_that_stands_still_stops_no_other() -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stand_still() -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    stuck = [asyncio.ensure_future(in_pool(Duty.UPLOADS, stand_still)) for _ in range(40)]
    try:
        for duty in Duty:
            if duty is not Duty.UPLOADS:
                assert await asyncio.wait_for(in_pool(duty, int), 5) == 0
        await asyncio.wait_for(asyncio.to_thread(int), 5)
    finally:
        release.set()
        await asyncio.gather(*stuck)
