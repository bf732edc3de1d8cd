"""The copy in 8 bit: follows every LoRA from the merged weights and comes back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sdxl_worker.drawing.speeds import make_fp8
from sdxl_worker.fp8.unet import Fp8Linear, Twin, copy_bytes, covered
from sdxl_worker.fp8.weights import Fp8Weights
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.lora import LoraPatcher, ModelCorrupted, ParsedLora, lora_targets, parse_lora
from sdxl_worker.settings import Settings
from testkit.doubles.graphs import FakeRecorder
from testkit.worker import MODEL, kohya_lora

pytestmark = pytest.mark.process


def numbers_of(layers: Iterable[Fp8Linear]) -> list[torch.Tensor]:
    """What 8-bit layers multiply with."""
    return [
        one.detach().clone().view(torch.uint8)
        for layer in layers
        for one in (layer.weight8, layer.scale)
    ]


@dataclass
class Made:
    unet: Any
    patcher: LoraPatcher
    twin: Twin
    weights: Fp8Weights
    recorder: FakeRecorder
    loras: list[ParsedLora]

    def copy(self) -> list[torch.Tensor]:
        """What the twin multiplies with now."""
        return numbers_of(self.twin.layers.values())

    def right(self) -> list[torch.Tensor]:
        """The same computed from the weights as they are now, from nothing."""
        return numbers_of(
            Fp8Linear(layer.weight.detach(), None, by_rows=True)
            for layer in covered(self.unet).values()
        )

    @property
    def targets(self) -> Any:
        return self.patcher._targets


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_model(Settings(base_model=str(MODEL), device="cpu", map_weights=False)).pipe


@pytest.fixture(params=[True, False], ids=["recorded", "layer by layer"])
def made(pipe: Any, request: pytest.FixtureRequest) -> Iterator[Made]:
    targets = lora_targets(pipe.unet)
    patcher, recorder = LoraPatcher(targets), FakeRecorder()
    twin, weights = make_fp8(pipe.unet, targets, recorder if request.param else None, by_rows=True)
    patcher.follow(weights)
    files = [kohya_lora(targets.shapes, seed=seed) for seed in (1, 2)]
    yield Made(
        pipe.unet, patcher, twin, weights, recorder, [parse_lora(file, targets) for file in files]
    )
    patcher._failed = None
    for name, w0 in patcher._pristine.items():
        patcher._live[name].copy_(w0)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_twin_shares_all_but_the_covered_layers_and_leaves_the_first_alone(made: Made) -> None:
    names = set(covered(made.unet))
    assert names
    assert set(made.twin.layers) == names
    assert not any(name.endswith(("attn2.to_k", "attn2.to_v", "time_emb_proj")) for name in names)
    mine, shared = dict(made.unet.named_parameters()), dict(made.twin.unet.named_parameters())
    for name, parameter in mine.items():
        owner, _, kind = name.rpartition(".")
        if owner in names and kind == "weight":
            assert name not in shared
        else:
            assert shared[name] is parameter
    assert type(made.unet.get_submodule(next(iter(names)))) is torch.nn.Linear
    assert made.weights.nbytes >= 2 * copy_bytes(made.unet)


def test_the_copy_follows_each_lora_in_the_same_memory_and_comes_back(made: Made) -> None:
    base, places = made.copy(), [one.weight8.data_ptr() for one in made.twin.layers.values()]
    assert same(base, made.right())
    first, second = made.loras
    for loras in ([(first, 0.8)], [(second, 0.5)], [(first, 0.8), (second, 0.5)], []):
        with made.patcher.applied(loras):
            held = made.copy()
            assert same(held, base) == (not loras)
            assert same(held, made.right())
            # From one set to another without the base between.
            made.patcher.apply([(second, 1.0)])
            assert same(made.copy(), made.right())
            made.patcher.apply(loras)
            assert same(made.copy(), held)
        assert same(made.copy(), base)
        made.patcher.verify_full()
    assert places == [one.weight8.data_ptr() for one in made.twin.layers.values()]


def test_a_swap_that_breaks_off_leaves_no_layer_behind(made: Made) -> None:
    base, calls = made.copy(), iter(range(10**6))

    class Stop(Exception):
        pass

    def check() -> None:
        if next(calls) == 20:
            raise Stop

    for _ in range(2):
        calls = iter(range(10**6))
        with pytest.raises(Stop):
            made.patcher.apply([(made.loras[0], 1.0)], check=check)
    # Some weights hold the set already: the copy of those must not be left out.
    made.patcher.apply([(made.loras[0], 1.0)])
    assert same(made.copy(), made.right())
    made.patcher.restore()
    assert same(made.copy(), base)


def test_what_is_recorded_is_replayed_and_given_up_when_memory_is_short(made: Made) -> None:
    recorded = [one for _, one in made.recorder.made]
    made.patcher.drop_operands()
    assert all(one.discarded for one in recorded)
    with made.patcher.applied([(made.loras[0], 1.0)]):
        assert same(made.copy(), made.right())


@pytest.mark.parametrize("kind", ["weight8", "scale"])
def test_a_copy_that_was_written_by_another_or_moved_is_found(made: Made, kind: str) -> None:
    layer = next(iter(made.twin.layers.values()))
    parameter = getattr(layer, kind)
    kept = parameter.detach().clone()
    parameter.data.view(torch.uint8)[0, 0] ^= 1
    with pytest.raises(ModelCorrupted, match="8-bit copy"):
        made.patcher.verify_full()
    parameter.data.copy_(kept)
    made.patcher._failed = None
    made.patcher.verify_full()

    parameter.data = kept
    with pytest.raises(ModelCorrupted, match="moved"):
        made.patcher.restore()


def test_a_restore_that_does_not_bring_the_copy_back_is_found(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made.weights._arena, "restore", made.weights._arena.is_pristine)
    with (
        pytest.raises(ModelCorrupted, match="8-bit copy"),
        made.patcher.applied([(made.loras[0], 1.0)]),
    ):
        pass


def test_a_pristine_copy_that_was_written_is_found(made: Made) -> None:
    block = made.weights._arena._pristine
    block[5] ^= 1
    with pytest.raises(ModelCorrupted, match="copy"):
        made.patcher.verify_full()
    block[5] ^= 1
