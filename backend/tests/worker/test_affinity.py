"""Requests meet their LoRAs: the worker's client before an edge that routes by session id."""

from __future__ import annotations

import asyncio
import hashlib
import random

from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
from app.services.worker.retry import RetryPolicy
from sdxl_contract.errors import Cancelled
from sdxl_contract.request import GenerateRequest, LoraRef
from sdxl_contract.routing.affinity import AFFINITY_HEADER
from testkit.doubles.inference_double import draw_picture
from testkit.doubles.modal_server_edge import MemoryContainer, ModalServerEdge

LORAS, REQUESTS, CONTAINERS, AT_ONCE = 40, 200, 4, 6
HOLDS = 10  # LoRAs in one container's memory: together they hold all


def asked(number: int, lora: int) -> GenerateRequest:
    digest = hashlib.sha256(f"lora {lora}".encode()).hexdigest()
    # Signed anew for every request, as the backend does.
    url = f"https://bucket.example/{lora}.safetensors?signature={number}&expires=9"
    return GenerateRequest(
        prompt=f"picture {number}",
        width=64,
        height=64,
        seed=number,
        request_id=f"job-{number}",
        loras=[LoraRef(url=url, sha256=digest)],
    )


def client_of(edge: ModalServerEdge) -> ModalSdxlLoraClient:
    return ModalSdxlLoraClient(
        edge.url, many_containers=True, policy=RetryPolicy(200, 0.002), poll_s=0.01
    )


async def hit_rate(*, sticky: bool) -> tuple[float, int]:
    """Share of LoRAs found in memory over all requests, every picture compared; and how many
    calls the edge refused."""
    # Five requests for each LoRA, in an order that helps nobody.
    order = [number % LORAS for number in range(REQUESTS)]
    random.Random(1).shuffle(order)
    containers = [MemoryContainer(f"ta-{n}", HOLDS) for n in range(CONTAINERS)]
    turn = asyncio.Semaphore(AT_ONCE)
    async with ModalServerEdge(containers, sticky=sticky) as edge, client_of(edge) as client:

        async def one(request: GenerateRequest) -> bool:
            async with turn:
                outcome = await client.generate_image(request)
            return outcome.images[0].file == draw_picture(request, request.seed or 0)

        right = await asyncio.gather(*(one(asked(n, lora)) for n, lora in enumerate(order)))
    assert all(right)
    hits = sum(one.hits for one in containers)
    return hits / (hits + sum(one.misses for one in containers)), edge.refused


async def test_requests_find_their_lora_in_memory_more_often_than_by_chance() -> None:
    with_affinity, _ = await hit_rate(sticky=True)
    by_chance, _ = await hit_rate(sticky=False)

    assert with_affinity >= 1.5 * by_chance > 0


async def test_a_cancel_reaches_the_container_that_draws() -> None:
    containers = [MemoryContainer(f"ta-{n}", HOLDS, draw_s=30) for n in range(CONTAINERS)]
    async with ModalServerEdge(containers) as edge, client_of(edge) as client:
        for number in range(6):
            request = asked(number, number)
            drawing = asyncio.create_task(client.generate_image(request))
            while not any(request.request_id in one.running for one in containers):
                await asyncio.sleep(0.005)
            assert await client.cancel(f"job-{number}")
            (error,) = await asyncio.gather(drawing, return_exceptions=True)
            assert isinstance(error, Cancelled)

        # The control: without the header a cancel finds its container by chance alone.
        drawing = asyncio.create_task(client.generate_image(asked(9, 9)))
        while not any(one.running for one in containers):
            await asyncio.sleep(0.005)
        (at,) = (one for one in containers if one.running)
        edge.containers.remove(at)
        client._affinity.clear()
        assert not await client.cancel("job-9")
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)

    assert sum(len(one.cancelled) for one in containers) == 6


async def test_what_is_sent_is_a_hash_of_the_loras_and_nothing_without_one() -> None:
    containers = [MemoryContainer("ta-0", HOLDS)]
    async with ModalServerEdge(containers) as edge, client_of(edge) as client:
        await client.generate_image(asked(1, 1))
        await client.generate_image(asked(2, 1))
        await client.generate_image(asked(3, 1).model_copy(update={"loras": []}))

    first, second, third = (call.headers.get(AFFINITY_HEADER.lower()) for call in edge.calls)
    assert first is not None
    assert first == second
    assert "bucket" not in first
    assert third is None


async def test_a_full_edge_is_asked_again_until_it_has_room() -> None:
    containers = [MemoryContainer("ta-0", HOLDS, draw_s=0.02)]
    async with ModalServerEdge(containers, places=1) as edge, client_of(edge) as client:
        await asyncio.gather(*(client.generate_image(asked(n, n)) for n in range(4)))

    assert edge.refused > 0
    assert containers[0].misses == 4


async def test_control_calls_go_to_their_own_url() -> None:
    """Health, states and cancels start no GPU where there is a URL for them."""
    draws, controls = (ModalServerEdge([MemoryContainer(n, HOLDS)]) for n in ("gpu", "cpu"))
    async with draws, controls:
        client = ModalSdxlLoraClient(draws.url + "/generate-image", control_url=controls.url + "/")
        async with client:
            await client.generate_image(asked(1, 1))
            await client.cancel("job-1")

    assert [call.path for call in draws.calls] == ["/generate-image"]
    assert [call.path for call in controls.calls] == ["/requests/job-1/cancel"]
