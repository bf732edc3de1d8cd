"""What a feature leaves behind on the model, other than in its weights, is found and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import httpx2
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.speeds import compile_whole, make_fp8
from sdxl_worker.drawing.structure import Structure
from sdxl_worker.lora import ModelCorrupted
from sdxl_worker.run import Run
from testkit.worker import SIDE, Borrowing, RunningWorker, running_worker, settings


def _attention(pipe: Any) -> Any:
    return next(m for m in pipe.unet.modules() if hasattr(m, "set_processor"))


@contextmanager
def processor(pipe: Any) -> Iterator[None]:
    one = _attention(pipe)
    own = one.processor
    one.set_processor(AttnProcessor2_0())
    yield
    one.set_processor(own)


@contextmanager
def all_processors(pipe: Any) -> Iterator[None]:
    own = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    yield
    pipe.unet.set_attn_processor(own)


@contextmanager
def hook(pipe: Any) -> Iterator[None]:
    handle = pipe.text_encoder_2.get_input_embeddings().register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def pre_hook(pipe: Any) -> Iterator[None]:
    handle = pipe.unet.mid_block.register_forward_pre_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def freeu(pipe: Any) -> Iterator[None]:
    blocks = list(pipe.unet.up_blocks)
    before = [dict(vars(block)) for block in blocks]
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.1, b2=1.2)
    yield
    for block, known in zip(blocks, before, strict=True):
        vars(block).clear()
        vars(block).update(known)


@contextmanager
def tiling(pipe: Any) -> Iterator[None]:
    pipe.vae.enable_tiling()
    yield
    pipe.vae.disable_tiling()


@contextmanager
def slicing(pipe: Any) -> Iterator[None]:
    pipe.vae.enable_slicing()
    yield
    pipe.vae.disable_slicing()


@contextmanager
def training(pipe: Any) -> Iterator[None]:
    pipe.unet.mid_block.train()
    yield
    pipe.unet.mid_block.eval()


@contextmanager
def scheduler(pipe: Any) -> Iterator[None]:
    own = pipe.scheduler
    pipe.scheduler = type(own).from_config(own.config)
    yield
    pipe.scheduler = own


@contextmanager
def projection(pipe: Any) -> Iterator[None]:
    own = pipe.unet.encoder_hid_proj
    pipe.unet.encoder_hid_proj = torch.nn.Linear(2, 2)
    yield
    del pipe.unet.encoder_hid_proj
    pipe.unet.encoder_hid_proj = own


@contextmanager
def precision(pipe: Any) -> Iterator[None]:
    weight = pipe.vae.decoder.conv_out.weight
    own = weight.data
    weight.data = own.half()
    yield
    weight.data = own


@contextmanager
def forward(pipe: Any) -> Iterator[None]:
    pipe.vae.decoder.forward = lambda *_: None
    yield
    del pipe.vae.decoder.forward


@contextmanager
def words(pipe: Any) -> Iterator[None]:
    own = pipe.tokenizer
    pipe.tokenizer = type(own).from_pretrained(own.name_or_path)
    yield
    pipe.tokenizer = own


LEFT_BEHIND: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a processor": (processor, "processor"),
    "every processor": (all_processors, "processor"),
    "a hook": (hook, "_forward_hooks"),
    "a pre-hook": (pre_hook, "unet.mid_block._forward_pre_hooks"),
    "FreeU": (freeu, "unet.up_blocks"),
    "tiling": (tiling, "vae.use_tiling"),
    "slicing": (slicing, "vae.use_slicing"),
    "training": (training, "unet.mid_block"),
    "a scheduler": (scheduler, "the pipeline's scheduler"),
    "a projection": (projection, "unet"),
    "a precision": (precision, "the precision of vae.decoder.conv_out"),
    "another forward": (forward, "vae.decoder.forward"),
    "a tokenizer": (words, "the pipeline's tokenizer"),
}


@pytest.fixture(scope="module")
def pipe(worker: RunningWorker) -> Any:
    assert worker.engine._ready is not None
    return worker.engine._ready.model.pipe


@pytest.fixture(scope="module")
def structure(pipe: Any) -> Structure:
    return Structure(pipe)


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_was_left_behind_is_found_and_named(
    pipe: Any, structure: Structure, what: str
) -> None:
    leave, name = LEFT_BEHIND[what]
    assert structure.difference() is None
    with leave(pipe):
        found = structure.difference()
        with pytest.raises(ModelCorrupted):
            structure.verify()
    assert found is not None
    assert name in found
    assert structure.difference() is None


TWIN = {
    "a processor": processor,
    "a hook before": pre_hook,
    "FreeU": freeu,
}


@pytest.mark.parametrize("what", TWIN)
def test_what_was_left_behind_on_the_unet_in_8_bit_is_found_and_named(
    pipe: Any, what: str, worker: RunningWorker
) -> None:
    assert worker.engine._ready is not None
    twin, _ = make_fp8(pipe.unet, worker.engine._ready.patcher._targets, by_rows=True)
    structure = Structure(pipe)
    structure.watch(twin.unet)
    structure.verify()
    beside = copy(pipe)
    beside.unet = twin.unet
    with TWIN[what](beside):
        # The control: the first UNet is as it was.
        assert Structure.difference(Structure(pipe)) is None
        assert "unet in 8 bit" in (structure.difference() or "")
        structure.watch(None)
        structure.verify()
    layer = next(iter(twin.layers.values()))
    own = layer.weight8
    structure.watch(twin.unet)
    layer.weight8 = torch.nn.Parameter(own.detach().clone(), requires_grad=False)
    assert "unet in 8 bit" in (structure.difference() or "")
    layer.weight8 = own
    structure.verify()


def test_compiling_leaves_nothing_on_the_unet(pipe: Any, structure: Structure) -> None:
    """torch marks a module that it compiles; nothing is compiled before the first call."""
    compile_whole(pipe.unet)
    assert structure.difference() is None


def test_words_added_to_a_tokenizer_are_found(pipe: Any) -> None:
    own = pipe.tokenizer
    pipe.tokenizer = type(own).from_pretrained(own.name_or_path)
    try:
        structure = Structure(pipe)
        pipe.tokenizer.add_tokens(["<face>"])
        assert structure.difference() == "the words of the tokenizer"
    finally:
        pipe.tokenizer = own


def test_a_written_vae_is_found_by_the_full_check_alone(pipe: Any) -> None:
    structure = Structure(pipe, later=True)
    structure.verify_full()
    weight = pipe.vae.decoder.conv_out.weight.data
    own = weight.flatten()[0].clone()
    weight.view(-1)[0] += 1
    try:
        structure.verify()
        with pytest.raises(ModelCorrupted, match=r"vae\.decoder\.conv_out\.weight"):
            structure.verify_full()
    finally:
        weight.view(-1)[0] = own
    structure.verify_full()


def test_a_flag_that_was_set_and_set_back_is_no_difference(pipe: Any, structure: Structure) -> None:
    known = pipe.vae.tile_overlap_factor
    pipe.vae.tile_overlap_factor = 0.5
    assert structure.difference() == "vae.tile_overlap_factor"
    pipe.vae.tile_overlap_factor = float(str(known))
    assert structure.difference() is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_whose_drawing_leaves_a_processor_stops_serving(
    worker: RunningWorker, pipe: Any, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    config, body = settings(), {"prompt": "an apple", "width": SIDE, "height": SIDE, "steps": 1}
    honest, one = Drawer.draw, _attention(pipe)
    own = one.processor

    def leaves(drawer: Drawer, run: Run) -> Any:
        one.set_processor(AttnProcessor2_0())
        if fails:
            raise RuntimeError("planted")
        return honest(drawer, run)

    with (
        running_worker(config, Borrowing(config, worker)) as running,
        httpx2.Client(base_url=running.url, timeout=60) as http,
    ):
        first = http.post("/generate-image", json=body)
        monkeypatch.setattr(Drawer, "draw", leaves)
        try:
            second = http.post("/generate-image", json=body)
        finally:
            one.set_processor(own)
        health = http.get("/health")

    assert (first.status_code, first.json()["structure_clean"]) == (200, True)
    assert first.json()["model_clean"] is True
    assert (second.status_code, second.json()["error_code"]) == (503, "MODEL_LOAD_FAILED")
    assert health.json()["status"] == "failed"
