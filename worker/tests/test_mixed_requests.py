"""Everything that can be drawn, in random order, with cancels and faults at random places.

Each picture is, byte for byte, what the same request gave first; after each burst every byte and
every object of the model and of the operator's networks is what it was at start. Controls plant
what a feature could leave behind, and the same checks find it.
"""

from __future__ import annotations

import asyncio
import copy
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdxl_contract.errors import ContractError
from sdxl_contract.request import GenerateRequest
from sdxl_worker.assembly import Assembly
from sdxl_worker.auxiliary.adapters import ADAPTER
from sdxl_worker.auxiliary.provided import CONTROL, UPSCALER
from sdxl_worker.auxiliary.shelf import Shelf
from sdxl_worker.auxiliary.upscaler_networks import Compact
from sdxl_worker.bits import copy_checked
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.engine import Engine
from sdxl_worker.lora import LoraPatcher, ModelCorrupted
from testkit.auxiliary.adapters import adapters_folder
from testkit.auxiliary.controls import controls_folder
from testkit.auxiliary.mixed import Trouble, all_kinds
from testkit.auxiliary.upscalers import compact
from testkit.worker import (
    Borrowing,
    FileServer,
    RunningWorker,
    file_server,
    hashes,
    settings,
)

Undo = Callable[[], object]
SHORT, LONG = 20, 300
BURST_MAX = 3
SOME = (
    "words", "two loras", "an embedding", "a soft masked area", "a second pass over pixels",
    "two controls and a lora", "two references over a source", "all at once",
)  # fmt: skip
PLANTED = "planted"
# Where a request may be ended; each is called one or more times by what needs it.
PLACES: tuple[tuple[type, str], ...] = (
    (ModelCalls, "encode_text"), (ModelCalls, "encode"), (ModelCalls, "unet"),
    (ModelCalls, "decode"), (Shelf, "get"), (Drawer, "_attachments"), (Drawer, "_shown"),
    (Compact, "forward"), (LoraPatcher, "_write"),
)  # fmt: skip


@pytest.fixture(scope="module")
def served() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(scope="module")
def kinds(served: FileServer, worker: RunningWorker) -> dict[str, dict[str, Any]]:
    return all_kinds(served, worker)


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    found = Trouble()
    for owner, name in PLACES:
        monkeypatch.setattr(owner, name, found.wrapped(getattr(owner, name)))
    return found


@pytest.fixture(scope="module")
def folders(worker: RunningWorker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    assert worker.engine._ready is not None
    unet = worker.engine._ready.model.pipe.unet
    upscalers = tmp_path_factory.mktemp("upscalers")
    save_file(compact(scale=2), upscalers / "small.safetensors")
    return {
        "upscalers_dir": upscalers,
        "controls_dir": controls_folder(tmp_path_factory.mktemp("controls"), unet),
        "adapters_dir": adapters_folder(tmp_path_factory.mktemp("adapters"), unet),
    }


class Mixed:
    """An engine of its own around the running worker's model."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def drawn(self, fields: dict[str, Any], name: str | None = None) -> bytes:
        """The picture.

        Raises:
            ContractError: there is none.
        """
        request = GenerateRequest(**fields, request_id=name or uuid.uuid4().hex)
        result = await self.engine.submit(request).result()
        # Unsaid where the next request took over the same LoRAs: that one says it then.
        assert result.model_clean or (result.model_clean is None and fields.get("loras"))
        assert result.structure_clean
        assert result.image_base64 is not None
        return result.image_base64.encode()

    async def check(self) -> None:
        """Every byte and every object is what it was at start.

        Raises:
            ModelCorrupted, AssertionError: it is not.
        """

        def compare() -> None:
            ready = self.engine._ready
            assert ready is not None
            ready.structure.verify_full()
            ready.shelf.verify_full()
            ready.patcher.verify_full()
            assert self.engine._failure is None

        await self.engine._lane.call(compare)


@asynccontextmanager
async def mixed(worker: RunningWorker, folders: dict[str, Path]) -> AsyncIterator[Mixed]:
    # Too little memory for all of the operator's networks: they come and go.
    config = settings(**folders, auxiliary_bytes=20 * 2**20, same_lora_run_max=3)
    engine = Borrowing(config, worker)
    await engine.load()
    weights = hashes(engine)
    try:
        yield Mixed(engine)
        assert hashes(engine) == weights
    finally:
        await engine.aclose()


async def run_mix(
    mix: Mixed, kinds: dict[str, dict[str, Any]], trouble: Trouble, count: int, seed: int
) -> Counter[str]:
    """`count` requests; how many of each outcome."""
    chance = random.Random(seed)
    firsts: dict[str, bytes] = {}
    lengths: dict[str, int] = {}
    outcomes: Counter[str] = Counter()

    async def one(kind: str, name: str) -> None:
        try:
            picture = await mix.drawn(kinds[kind], name)
        except ContractError as error:
            if trouble.act is None:
                raise
            outcomes[error.code.value] += 1
            return
        outcomes["drawn"] += 1
        assert firsts.setdefault(kind, picture) == picture, f"{kind} differs from its first"

    waiting = list(kinds)
    chance.shuffle(waiting)
    while outcomes.total() < count:
        names = [uuid.uuid4().hex for _ in range(chance.randint(1, BURST_MAX))]
        new = waiting.pop() if waiting and chance.random() < 0.7 else None
        burst = [new or chance.choice(list(kinds)) for _ in names]
        burst = [new] if new else burst
        known = [kind for kind in burst if kind in lengths]
        if known and not new and chance.random() < 0.6:
            acts: list[Callable[[], object]] = [
                partial(_raise, RuntimeError(PLANTED)),
                partial(_raise, MemoryError(PLANTED)),
                partial(mix.engine.runs.cancel, chance.choice(names)),
                mix.engine.runs.cancel_all,
            ]
            total = sum(lengths.get(kind, 1) for kind in burst)
            trouble.plan(chance.choice(acts), chance.randrange(total), before=chance.random() < 0.5)
        else:
            trouble.plan(None)
        await asyncio.gather(*(one(*each) for each in zip(burst, names, strict=False)))
        if len(burst) == 1 and trouble.act is None:
            lengths[burst[0]] = trouble.calls
        await mix.check()
    assert firsts.keys() == kinds.keys()
    assert len(set(firsts.values())) == len(firsts), "two kinds are one picture"
    return outcomes


def _raise(error: Exception) -> None:
    raise error


async def test_some_of_all_that_can_be_asked_leaves_nothing(
    worker: RunningWorker,
    folders: dict[str, Path],
    kinds: dict[str, dict[str, Any]],
    trouble: Trouble,
) -> None:
    async with mixed(worker, folders) as mix:
        some = {name: kinds[name] for name in SOME}
        outcomes = await run_mix(mix, some, trouble, SHORT, seed=1)
    assert outcomes["drawn"] >= SHORT * 0.6, outcomes
    assert outcomes["drawn"] < outcomes.total(), outcomes


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_three_hundred_of_all_that_can_be_asked_leave_nothing(
    worker: RunningWorker,
    folders: dict[str, Path],
    kinds: dict[str, dict[str, Any]],
    trouble: Trouble,
) -> None:
    async with mixed(worker, folders) as mix:
        outcomes = await run_mix(mix, kinds, trouble, LONG, seed=2)
    assert outcomes["drawn"] >= LONG * 0.6, outcomes
    assert {"CANCELLED", "GENERATION_FAILED", "CUDA_OOM"} <= outcomes.keys(), outcomes


# --- controls -------------------------------------------------------------------------------------


def _scheduler(ready: Assembly) -> Undo:
    pipe = ready.model.pipe
    own, pipe.scheduler = pipe.scheduler, copy.copy(pipe.scheduler)
    return partial(setattr, pipe, "scheduler", own)


def _tiling(ready: Assembly) -> Undo:
    vae = ready.model.pipe.vae
    vae.use_tiling = True
    return partial(setattr, vae, "use_tiling", False)


def _hook(ready: Assembly) -> Undo:
    words = ready.model.pipe.text_encoder.get_input_embeddings()
    return words.register_forward_hook(lambda *_: None).remove  # type: ignore[no-any-return]


def _seam(ready: Assembly) -> Undo:
    return _changed(next(ready.model.pipe.vae.parameters()))


def _forgotten(ready: Assembly) -> Undo:
    """A LoRA's weights that nobody knows of any more."""
    patcher = ready.patcher
    patcher._dirty.clear()

    def undo() -> None:
        weights = ((name, live, patcher._pristine[name]) for name, live in patcher._live.items())
        assert copy_checked(weights) is None

    return undo


def _left_on(ready: Assembly) -> Undo:
    """As if what attaches adapters did not take them off."""
    kind = type(ready.model.pipe.unet)
    honest = kind.set_attn_processor
    kind.set_attn_processor = lambda self, processors: None
    return partial(setattr, kind, "set_attn_processor", honest)


def _network(kind: str, name: str, ready: Assembly) -> Undo:
    _changed(next(ready.shelf.get(kind, name).parameters()))
    return ready.shelf.clear


def _changed(tensor: torch.Tensor) -> Undo:
    before = tensor.detach().clone()
    tensor.data.mul_(1.5)

    def undo() -> None:
        tensor.data.copy_(before)

    return undo


LEAKS: tuple[tuple[str, str, Callable[[Assembly], Undo]], ...] = (
    ("words", "unet", _scheduler),
    ("an embedding", "encode_text", _hook),
    ("a source", "encode", _seam),
    ("a frame", "decode", _seam),
    ("a second pass", "decode", _tiling),
    ("an enlargement", "forward", partial(_network, UPSCALER, "small")),
    ("a control", "unet", partial(_network, CONTROL, "lines")),
    ("a union", "unet", partial(_network, CONTROL, "union")),
    ("a t2i adapter", "unet", partial(_network, CONTROL, "sketch")),
    ("a reference", "unet", _left_on),
    ("two references over a source", "unet", partial(_network, ADAPTER, "plus")),
    # Last: the patcher never trusts itself again.
    ("a lora", "unet", _forgotten),
)


@pytest.mark.long
async def test_what_a_feature_could_leave_behind_is_found(
    worker: RunningWorker, folders: dict[str, Path], kinds: dict[str, dict[str, Any]]
) -> None:
    async with mixed(worker, folders) as mix:
        for kind, place, leak in LEAKS:
            await mix.check()
            assert await _is_found(mix, kinds[kind], place, leak), kind


async def _is_found(
    mix: Mixed, fields: dict[str, Any], place: str, leak: Callable[[Assembly], Undo]
) -> bool:
    """Whether the checks find what is left behind at the first call of a place."""
    ready = mix.engine._ready
    assert ready is not None
    undone: list[Undo] = []
    before = dict(ready.model.pipe.unet.attn_processors)
    trouble = Trouble()
    trouble.plan(lambda: undone.append(leak(ready)))
    owner = next(owner for owner, name in PLACES if name == place)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(owner, place, trouble.wrapped(getattr(owner, place)))
            with suppress(ContractError):
                await mix.drawn(fields)
        assert undone, "nothing was planted"
        await mix.check()
    except (ModelCorrupted, AssertionError):
        return bool(undone)
    finally:
        for undo in undone:
            undo()
        ready.model.pipe.unet.set_attn_processor(before)
        mix.engine._failure = None
    return False
