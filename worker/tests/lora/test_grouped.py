"""Weights in one block, and layers written in bulk: the same bits as one by one, on any device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdxl_worker.graphs.cuda import CudaRecorder
from sdxl_worker.lora import LoraPatcher, parse_lora
from sdxl_worker.lora.grouped import GroupedWrites, prepare
from sdxl_worker.lora.merge import merge_weight
from testkit.doubles.graphs import OneRecording
from testkit.loras.making import TinyModel, lora_file, model_hashes, save, tiny_model

pytestmark = pytest.mark.process


ENDS = ("attn1.to_q", "attn2.to_k", "ff.net.2", "q_proj", "conv1")


def parsed(model: TinyModel, targets: Any, kind: str = "lora", seed: int = 0, rank: int = 4) -> Any:
    names = [name for name in targets.shapes if name.endswith(ENDS)]
    return parse_lora(save(lora_file(model, kind, modules=names, seed=seed, rank=rank)), targets)


def values(targets: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in targets.tensors()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Recorder:
    """Records by noting; replays by calling again."""

    def __init__(self) -> None:
        self.made: list[OneRecording] = []

    def record(self, call: Callable[[], Any], pool: str) -> OneRecording:
        self.made.append(OneRecording(call, 0))
        return self.made[-1]


@pytest.fixture
def bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk writing on the CPU, where it is not used for good, with a GPU's exact products."""
    made = GroupedWrites

    def on_cpu(*args: Any) -> GroupedWrites:
        options: dict[str, Any] = {"device_type": "cpu"}
        return made(*args, **options)

    monkeypatch.setattr("sdxl_worker.lora.patcher.GroupedWrites", on_cpu)
    for place in ("sdxl_worker.lora.grouped", "sdxl_worker.lora.merge"):
        monkeypatch.setattr(f"{place}.has_exact_products", lambda out: out.dtype == torch.bfloat16)


def test_operands_prepared_together_are_those_of_each_layer_alone(bulk: None) -> None:
    model = tiny_model()
    targets = model.targets()
    live = {name: parameter.detach() for name, parameter in targets.patchable()}
    w0 = {name: tensor.clone() for name, tensor in live.items()}
    first, second = parsed(model, targets), parsed(model, targets, seed=1, rank=6)
    for loras in ([(first, 0.8)], [(first, 0.7), (second, 0.7)], [(first, 0.8), (second, -0.3)]):
        plan = {
            f"{name}.weight": [(lora.layers[name], scale) for lora, scale in loras]
            for name in first.layers
        }
        written = GroupedWrites(live, w0)
        for product in written._products(prepare(live, w0, plan)):
            product.write()
        for name, contributions in plan.items():
            alone = torch.empty_like(w0[name])
            merge_weight(alone, w0[name], contributions)
            assert torch.equal(live[name], alone), name
            assert not torch.equal(alone, w0[name])


def test_like_layers_are_prepared_by_a_few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    targets = model.targets()
    lora = parsed(model, targets)
    live = {name: parameter.detach() for name, parameter in targets.patchable()}
    plan = {f"{name}.weight": [(layer, 1.0)] for name, layer in lora.layers.items()}
    stacked: list[int] = []
    real = torch.stack

    def counted(parts: Any) -> Tensor:
        stacked.append(len(parts))
        return real(parts)

    monkeypatch.setattr(torch, "stack", counted)
    groups = prepare(live, live, plan)

    assert sum(len(group.names) for group in groups) == len(plan) > 20
    assert len(stacked) < len(plan) / 3


@pytest.mark.parametrize("one_block", [False, True])
def test_a_patcher_that_writes_in_bulk_gives_the_same_model_and_gives_it_back(
    bulk: None, one_block: bool
) -> None:
    """Random sets of every algorithm, one after the other, against a patcher that does not."""
    model, other = tiny_model(), tiny_model()
    targets = model.targets()
    recorder = Recorder()
    patcher = LoraPatcher(targets, one_block=one_block, recorder=recorder, operand_bytes=1 << 30)
    before = model_hashes(model)
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr("sdxl_worker.lora.patcher.GroupedWrites", GroupedWrites)
        reference = LoraPatcher(other.targets())
    sets = [
        [("lora", 0, 0.8)], [("loha", 2, 0.5)], [("lora", 0, 0.8)],
        [("lora", 0, 0.8), ("lora", 1, -0.4)], [("lora", 0, 0.8), ("dora-in", 3, 0.9)],
        [("lora", 0, 0.3)], [("lora", 1, 0.8)], [("lora", 2, 0.8)], [("lora", 0, 0.8)],
        [("lora", 3, 0.8)], [("lora", 3, 0.8), ("lora", 2, -0.4)], [("lora", 2, 0.8)],
    ]  # fmt: skip
    for chosen in sets:
        loras = [(parsed(model, targets, kind, seed), scale) for kind, seed, scale in chosen]
        theirs = [(parsed(other, other.targets(), kind, seed), scale)
                  for kind, seed, scale in chosen]  # fmt: skip
        patcher.apply(loras)
        reference.apply(theirs)
        assert same(values(targets), values(other.targets())), chosen
    # One for a LoRA at 0.8, one for two at 0.8 and -0.4.
    assert len(recorder.made) == 2
    patcher.restore()
    assert model_hashes(model) == before
    patcher.verify_full()


def test_what_comes_again_is_recorded_for_all_that_is_alike_and_only_so_many_are_kept(
    bulk: None,
) -> None:
    model = tiny_model()
    targets = model.targets()
    recorder = Recorder()
    patcher = LoraPatcher(targets, recorder=recorder, operand_bytes=1 << 30)
    loras = [parsed(model, targets, seed=seed) for seed in range(6)]

    def use(number: int, scale: float = 0.8) -> None:
        with patcher.applied([(loras[number], scale)]):
            pass

    use(0)
    assert recorder.made == []
    for number in (1, 0, 2, 3, 4, 5, 0):
        use(number)
    assert len(recorder.made) == 1
    assert len(patcher._grouped._kept) == 4
    # Another strength is another recording; the one that was not used for the longest time goes.
    for scale in (0.1, 0.2, 0.3, 0.4):
        use(0, scale)
        use(1, scale)
    assert len(recorder.made) == 5
    assert [one.discarded for one in recorder.made] == [True, False, False, False, False]
    patcher.drop_operands()
    assert all(one.discarded for one in recorder.made)
    # When memory was short, nothing is recorded for what comes once.
    use(0)
    assert len(recorder.made) == 5


def test_kinds_that_take_turns_are_not_all_recorded_each_time(bulk: None) -> None:
    model = tiny_model()
    targets = model.targets()
    recorder = Recorder()
    patcher = LoraPatcher(targets, recorder=recorder, operand_bytes=1 << 30)
    lora = parsed(model, targets)
    for _ in range(10):
        for scale in (0.1, 0.2, 0.3, 0.4, 0.5):
            with patcher.applied([(lora, scale)]):
                pass
    assert len(recorder.made) == 4
    # One that is asked for alone takes the place of another.
    for _ in range(3):
        with patcher.applied([(lora, 0.9)]):
            pass
    assert len(recorder.made) == 5


def test_what_a_recording_holds_is_not_prepared_again(
    bulk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    targets = model.targets()
    loras = [parsed(model, targets, seed=seed) for seed in range(2)]
    live = dict(targets.patchable())
    plan = {f"{name}.weight": [(layer, 0.8)] for name, layer in loras[0].layers.items()}
    size = sum(group.nbytes for group in prepare(live, live, plan))
    count = 0

    def counted(*given: Any) -> Any:
        nonlocal count
        count += 1
        return prepare(*given)

    monkeypatch.setattr("sdxl_worker.lora.grouped.prepare", counted)
    # Room for the recording alone.
    patcher = LoraPatcher(targets, recorder=Recorder(), operand_bytes=size)
    for number in (0, 0, 0, 0, 1, 1, 1):
        with patcher.applied([(loras[number], 0.8)]):
            pass
    assert count == 2


def test_a_recording_that_had_no_memory_is_tried_again(bulk: None) -> None:
    class Short(Recorder):
        error: Exception = torch.OutOfMemoryError("CUDA out of memory")
        tried = 0

        def record(self, call: Callable[[], Any], pool: str) -> OneRecording:
            self.tried += 1
            if self.tried == 1:
                raise self.error
            return super().record(call, pool)

    model = tiny_model()
    targets = model.targets()
    lora = parsed(model, targets)
    for error, tried in ((Short.error, 2), (RuntimeError("not in a capture"), 1)):
        recorder = Short()
        recorder.error = error
        patcher = LoraPatcher(targets, recorder=recorder, operand_bytes=1 << 30)
        for _ in range(6):
            with patcher.applied([(lora, 0.8)]):
                pass
        assert recorder.tried == tried


def test_operands_of_sets_and_recordings_stay_within_one_budget(bulk: None) -> None:
    model = tiny_model()
    targets = model.targets()
    loras = [parsed(model, targets, seed=seed) for seed in range(4)]
    one = GroupedWrites(dict(targets.patchable()), dict(targets.patchable()))
    plan = {f"{name}.weight": [(layer, 0.8)] for name, layer in loras[0].layers.items()}
    size = sum(group.nbytes for group in prepare(one.live, one.pristine, plan))
    for budget, sets, recordings in ((size - 1, 0, 0), (size, 0, 1), (2 * size, 1, 1)):
        recorder = Recorder()
        patcher = LoraPatcher(targets, recorder=recorder, operand_bytes=budget)
        for number in (0, 1, 2, 3, 0):
            with patcher.applied([(loras[number], 0.8)]):
                pass
        held = patcher._grouped
        assert held._held() <= budget
        assert (len(held._kept), len(held._recorded)) == (sets, recordings)


def test_the_second_try_has_the_memory_of_the_first(
    bulk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    targets = model.targets()
    patcher = LoraPatcher(targets, operand_bytes=1 << 30)
    patcher.apply([(parsed(model, targets), 0.8)])
    first: list[weakref.ref[Tensor]] = []
    errors = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("illegal memory access")]

    def short(*given: Any) -> Any:
        if first:
            assert first[-1]() is None
            return prepare(*given)
        operands = torch.zeros(1000)
        first.append(weakref.ref(operands))
        raise errors[0]

    monkeypatch.setattr("sdxl_worker.lora.grouped.prepare", short)
    gc.collect()
    gc.disable()
    try:
        patcher.apply([(parsed(model, targets, seed=1), 0.8)])
    finally:
        gc.enable()
    assert len(first) == 1
    # Any other error is no want of memory: it is not tried again.
    first.clear()
    errors.pop(0)
    with pytest.raises(RuntimeError, match="illegal"):
        patcher.apply([(parsed(model, targets, seed=2), 0.8)])


def test_on_a_gpu_the_processor_s_threads_are_not_asked_for_nothing(
    bulk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    targets = model.targets()
    patcher = LoraPatcher(targets)
    asked: list[list[str]] = []
    monkeypatch.setattr(patcher._cores, "each", lambda _, names: asked.append(names))
    patcher.apply([(parsed(model, targets), 0.8)])
    # All of it is written in bulk.
    assert [] not in asked


def test_without_a_budget_nothing_is_kept(bulk: None) -> None:
    model = tiny_model()
    targets = model.targets()
    recorder = Recorder()
    patcher = LoraPatcher(targets, recorder=recorder, operand_bytes=0)
    lora = parsed(model, targets)
    for _ in range(3):
        with patcher.applied([(lora, 0.8)]):
            pass
    assert recorder.made == []


def test_a_recording_of_a_stale_factor_is_found_by_the_picture_and_not_by_the_restore(
    bulk: None,
) -> None:
    """The control: a recorded swap that no longer reads what it should."""
    model = tiny_model()
    targets = model.targets()
    recorder = Recorder()
    patcher = LoraPatcher(targets, recorder=recorder, operand_bytes=1 << 30)
    lora = parsed(model, targets)
    expected = None
    for turn in range(4):
        if turn == 3:
            for recorded in patcher._grouped._recorded.values():
                recorded.groups[0].left.zero_()
        with patcher.applied([(lora, 0.8)]):
            found = values(targets)
        expected = found if expected is None else expected
        assert same(found, expected) == (turn < 3)
    patcher.verify_full()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_bulk_and_layer_by_layer_give_the_same_bits_recorded_or_not() -> None:
    model, other = tiny_model(), tiny_model()
    for one in (model, other):
        for part in one.roots().values():
            part.to("cuda")
    targets = model.targets()
    patcher = LoraPatcher(targets, one_block=True, operand_bytes=1 << 30,
                          recorder=CudaRecorder(torch.device("cuda")))  # fmt: skip
    reference = LoraPatcher(other.targets())
    reference._grouped.device_type = "none"
    for seed, scale in ((0, 0.8), (1, 0.8), (0, 0.8), (1, 0.8), (0, 0.8), (0, 0.5)):
        with (
            patcher.applied([(parsed(model, targets, seed=seed).to("cuda"), scale)]),
            reference.applied([(parsed(other, other.targets(), seed=seed).to("cuda"), scale)]),
        ):
            assert same(values(targets), values(other.targets()))
    patcher.verify_full()
