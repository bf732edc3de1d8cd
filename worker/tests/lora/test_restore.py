"""The model comes back bit for bit, whatever was done to it; and the check itself can fail."""

from __future__ import annotations

import gc
import itertools
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdxl_contract.errors import LoraLoadFailed
from sdxl_worker.lora import LoraPatcher, ModelCorrupted, ParsedLora, SwapKind, parse_lora
from testkit.loras.making import MAKERS, Rig, lora_file, model_hashes, save, tiny_model

pytestmark = pytest.mark.process


def parsed(rig: Rig, algorithm: str = "lora", **how: Any) -> ParsedLora:
    tensors = lora_file(rig.model, algorithm, **how)
    return parse_lora(save(tensors), rig.targets)


def weights(rig: Rig) -> dict[str, bytes]:
    return {
        name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in rig.targets.patchable()
    }


@pytest.mark.slow
@pytest.mark.long
def test_two_hundred_random_loras_leave_no_trace(rig: Rig) -> None:
    chance = random.Random(7)
    kinds = list(MAKERS)
    changed = 0
    for round_number in range(70):
        loras = [
            (
                parsed(
                    rig,
                    kinds[(3 * round_number + k) % len(kinds)],
                    seed=3 * round_number + k,
                    rank=chance.choice([1, 2, 4, 8]),
                    alpha=chance.choice([None, 1.0, 4.0]),
                    share=chance.choice([0.02, 0.1, 0.3]),
                ),
                chance.uniform(-2, 2),
            )
            for k in range(3)
        ]
        with rig.patcher.applied(loras) as swap:
            changed += swap.tensors_written
            if round_number % 10 == 0:
                assert not rig.is_pristine()
        # Values of every tensor a LoRA touched were compared by `restore`; here the rest, too.
        if round_number % 5 == 0:
            assert rig.is_pristine()
    assert rig.is_pristine()
    rig.patcher.verify_full()
    assert changed > 5000


def test_the_same_check_fails_for_fusing_and_unfusing() -> None:
    """The control: what others do does not give the weights back."""
    model = tiny_model(torch.bfloat16)
    unet_names = [name for name in model.shapes if name.endswith("attn1.to_q")]
    spelled = {}
    for name in unet_names:
        made = lora_file(model, "lora", modules=[name], rank=8, alpha=None)
        for key, tensor in made.items():
            part = "lora_A.weight" if "lora_down" in key else "lora_B.weight"
            spelled[f"{name.removeprefix('unet.')}.{part}"] = tensor
    before = model_hashes(model)
    model.unet.load_lora_adapter(spelled, prefix=None, adapter_name="x")
    model.unet.fuse_lora()
    model.unet.unfuse_lora()
    model.unet.unload_lora()
    after = model_hashes(model)
    changed = [
        name
        for name in (f"{module}.weight" for module in unet_names)
        if before[name].split()[0] != after[name].split()[0]
    ]
    assert len(changed) > len(unet_names) // 2


def test_switching_gives_what_a_fresh_model_gives_and_writes_each_tensor_once(rig: Rig) -> None:
    first = parsed(rig, "lora", seed=1, share=0.5)
    second = parsed(rig, "loha", seed=2, share=0.5)
    rig.patcher.apply([(second, 0.8)])
    fresh = weights(rig)
    rig.patcher.restore()

    rig.patcher.apply([(first, 1.0)])
    swap = rig.patcher.apply([(second, 0.8)])
    assert weights(rig) == fresh
    only_first = first.layers.keys() - second.layers.keys()
    assert swap.kind is SwapKind.SWITCH
    assert (swap.tensors_written, swap.tensors_restored) == (len(second.layers), len(only_first))
    rig.patcher.restore()
    assert rig.is_pristine()


def test_weights_are_computed_from_the_copy_and_not_from_what_they_hold(rig: Rig) -> None:
    lora = parsed(rig, "lora", seed=1, share=0.5)
    rig.patcher.apply([(lora, 1.0)])
    expected = weights(rig)
    rig.patcher.restore()
    touched = [rig.targets.modules[name].weight for name in lora.layers]
    with torch.no_grad():
        for weight in touched:
            weight.add_(1)

    rig.patcher.apply([(lora, 1.0)])
    assert weights(rig) == expected
    rig.patcher.restore()
    assert rig.is_pristine()


def test_the_same_set_again_writes_nothing_whatever_its_order(rig: Rig) -> None:
    loras = [(parsed(rig, seed=seed), 0.5 + seed / 10) for seed in range(3)]
    rig.patcher.apply(loras)
    held = weights(rig)
    for order in itertools.permutations(loras):
        swap = rig.patcher.apply(list(order))
        assert swap.kind is SwapKind.SAME
        assert swap.tensors_written == swap.tensors_restored == swap.bytes_written == 0
    assert weights(rig) == held
    rig.patcher.restore()
    assert rig.is_pristine()


def test_the_order_of_loras_does_not_change_a_bit(rig: Rig) -> None:
    loras = [(parsed(rig, kind, seed=9), 0.9) for kind in ("lora", "loha", "lokr", "dora-out")]
    results = []
    for order in (loras, loras[::-1], [loras[2], loras[0], loras[3], loras[1]]):
        with rig.patcher.applied(order):
            results.append(weights(rig))
    assert results[0] == results[1] == results[2]


def test_adding_a_lora_leaves_tensors_alone_that_it_does_not_touch(rig: Rig) -> None:
    names = [name for name in rig.targets.shapes if name.endswith("to_q")]
    first = parsed(rig, modules=names[:6])
    second = parsed(rig, modules=names[4:10], seed=1)
    rig.patcher.apply([(first, 1.0)])
    swap = rig.patcher.apply([(first, 1.0), (second, 1.0)])
    assert (swap.tensors_written, swap.tensors_restored) == (6, 0)
    rig.patcher.restore()


def test_scale_zero_is_the_base_and_writes_nothing(rig: Rig) -> None:
    swap = rig.patcher.apply([(parsed(rig), 0.0), (parsed(rig, "dora-in"), -0.0)])
    assert swap.kind is SwapKind.NONE
    assert swap.tensors_written == 0
    assert rig.is_pristine()


class Fault(BaseException):
    """Neither an Exception nor anything that the code under test knows."""


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt, torch.cuda.OutOfMemoryError])
def test_a_fault_before_any_tensor_leaves_the_model_pristine(
    rig: Rig, kind: type[BaseException]
) -> None:
    names = [name for name in rig.targets.shapes if name.endswith(("to_q", "fc1"))]
    lora = parsed(rig, modules=names)
    for position in range(0, len(names), 3 if kind is Fault else 9):
        with (
            pytest.raises(kind),
            rig.patcher.applied([(lora, 1.0)], check=_at(position, kind)),
        ):
            pytest.fail("the block must not be entered")
        assert rig.patcher.dirty_tensors == 0
        assert rig.is_pristine()
    with rig.patcher.applied([(lora, 1.0)]):
        right = weights(rig)
    with rig.patcher.applied([(lora, 1.0)]):
        assert weights(rig) == right


def _at(position: int, kind: type[BaseException]) -> Callable[[], None]:
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == position:
            raise kind

    return stop


def test_a_fault_in_the_middle_of_a_write_is_put_right(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdxl_worker.lora.patcher as module
    from sdxl_worker.lora.merge import merge_weight as honest

    lora = parsed(rig, modules=[name for name in rig.targets.shapes if name.endswith("to_k")][:6])

    def half_written(out: torch.Tensor, base: torch.Tensor, contributions: object) -> bool:
        honest(out, base, contributions)  # type: ignore[arg-type]
        out.view(-1)[: out.numel() // 2].fill_(float("nan"))
        raise Fault

    for survivors in range(4):
        calls = itertools.count()

        def merge(
            out: torch.Tensor, base: torch.Tensor, c: object, limit: int = survivors,
            calls: itertools.count[int] = calls,
        ) -> bool:  # fmt: skip
            return (honest if next(calls) < limit else half_written)(out, base, c)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "merge_weight", merge)
        with pytest.raises(Fault), rig.patcher.applied([(lora, 1.0)]):
            pass
        assert rig.is_pristine()


def test_a_fault_while_switching_leaves_the_model_pristine(rig: Rig) -> None:
    first, second = parsed(rig, seed=1, share=0.1), parsed(rig, seed=2, share=0.1)
    for position in range(0, 40, 5):
        rig.patcher.apply([(first, 1.0)])
        with (
            pytest.raises(Fault),
            rig.patcher.applied([(second, 1.0)], check=_at(position, Fault)),
        ):
            pass
        assert rig.is_pristine()


def test_a_block_that_raises_restores_even_if_it_was_to_be_kept(rig: Rig) -> None:
    lora = parsed(rig)
    with pytest.raises(Fault), rig.patcher.applied([(lora, 1.0)], hand_over=lambda: True):
        raise Fault
    assert rig.is_pristine()
    with rig.patcher.applied([(lora, 1.0)], hand_over=lambda: True):
        pass
    assert not rig.is_pristine()
    with rig.patcher.applied([(lora, 1.0)]) as swap:
        assert swap.kind is SwapKind.SAME
    assert rig.is_pristine()


def test_weights_that_overflow_are_refused_and_put_back() -> None:
    rig = Rig(torch.float16)
    name = "unet.mid_block.attentions.0.proj_in"
    lora = parsed(rig, modules=[name], alpha=60000.0, rank=1)
    with pytest.raises(LoraLoadFailed, match="infinite"), rig.patcher.applied([(lora, 16.0)] * 4):
        pytest.fail("the block must not be entered")
    assert rig.is_pristine()


def test_a_scale_that_is_no_number_is_refused_before_any_write(rig: Rig) -> None:
    for scale in (float("nan"), float("inf"), 1e9):
        with pytest.raises(LoraLoadFailed, match="scale"):
            rig.patcher.apply([(parsed(rig), scale)])
        assert rig.is_pristine()


def test_a_lora_read_for_another_model_is_refused_before_any_write(rig: Rig) -> None:
    import dataclasses

    lora = parsed(rig)
    layers = {
        name: dataclasses.replace(layer, weight_shape=(1, 1)) for name, layer in lora.layers.items()
    }
    with pytest.raises(LoraLoadFailed, match="another model"):
        rig.patcher.apply([(dataclasses.replace(lora, layers=layers), 1.0)])
    assert rig.is_pristine()


def test_a_stranger_s_write_is_found_and_stops_all_work() -> None:
    rig = Rig(torch.bfloat16)
    with torch.no_grad():
        rig.model.text_encoder.get_input_embeddings().weight[3, 3] += 1
    with pytest.raises(ModelCorrupted, match="embedding"):
        rig.patcher.verify_full()
    with pytest.raises(ModelCorrupted):
        rig.patcher.apply([(parsed(rig), 1.0)])
    with pytest.raises(ModelCorrupted):
        rig.patcher.restore()


def test_one_flipped_bit_in_a_weight_or_in_its_pristine_copy_is_found() -> None:
    for what in ("live", "pristine"):
        rig = Rig(torch.bfloat16)
        name = "unet.up_blocks.1.attentions.2.proj_out.weight"
        tensor = dict(getattr(rig.patcher, f"_{what}"))[name]
        tensor.detach().view(torch.int16)[7, 5] ^= 1
        with pytest.raises(ModelCorrupted, match="proj_out"):
            rig.patcher.verify_full()


def test_a_replaced_parameter_is_found_before_anything_is_written() -> None:
    rig = Rig(torch.bfloat16)
    layer = rig.model.unet.mid_block.attentions[0].proj_in
    layer.weight.data = layer.weight.data.clone()
    with pytest.raises(ModelCorrupted, match="moved or replaced"):
        rig.patcher.apply([(parsed(rig), 1.0)])


def test_channels_last_weights_keep_their_strides() -> None:
    model = tiny_model(torch.bfloat16)
    model.unet.to(memory_format=torch.channels_last)
    before = model_hashes(model)
    targets = model.targets()
    patcher = LoraPatcher(targets)
    contiguous = tiny_model(torch.bfloat16)
    reference = LoraPatcher(contiguous.targets())
    for kind in ("lora", "tucker", "lokr-full"):
        data = save(lora_file(model, kind, share=0.5))
        reference.apply([(parse_lora(data, contiguous.targets()), 1.0)])
        expected = dict(contiguous.targets().patchable())
        with patcher.applied([(parse_lora(data, targets), 1.0)]):
            for name, weight in targets.patchable():
                other = expected[name].float()
                assert torch.allclose(weight.float(), other, rtol=2**-7, atol=1e-6)
        assert model_hashes(model) == before


@pytest.mark.slow
@pytest.mark.long
def test_five_hundred_swaps_keep_memory_flat(rig: Rig) -> None:
    loras = [parsed(rig, kind, seed=3, share=0.02) for kind in ("lora", "loha", "dora-in")]

    def swap(times: int) -> None:
        for number in range(times):
            with rig.patcher.applied([(loras[number % 3], 1.0)]):
                pass

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    swap(100)
    before = resident()
    swap(400)
    assert resident() - before < 8 * 2**20
    assert rig.is_pristine()


@pytest.mark.long
def test_a_process_may_end_while_checksums_are_being_taken() -> None:
    code = (
        "import torch, time\n"
        "from sdxl_worker.lora import LoraPatcher, ModelTargets\n"
        "layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(100)))\n"
        "patcher = LoraPatcher(ModelTargets({'unet': layers}), fingerprint_later=True)\n"
        "print(len(patcher._fingerprints), flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-500:]
    # The control that there was something left to do.
    assert int(done.stdout) < 200
