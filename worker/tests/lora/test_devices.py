"""Exact merges and bit-exact restores wherever the weights, factors and pristine copy are."""

from __future__ import annotations

import pytest
import torch

from sdxl_worker.lora import LoraPatcher, parse_lora
from testkit.loras.making import kohya_stem, lora_file, save, tiny_model
from testkit.loras.oracle import exact_change, ulps

pytestmark = pytest.mark.process


CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
# Where the weights are, and where their pristine copy is kept.
PLACES = [
    pytest.param("cpu", None, id="cpu"),
    pytest.param("cuda", None, id="cuda", marks=CUDA),
    pytest.param("cuda", "cpu", id="cuda-pristine-on-cpu", marks=CUDA),
]


@pytest.mark.parametrize(("device", "pristine"), PLACES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "loha", "dora-in"])
def test_merge_and_restore_are_exact(
    dtype: torch.dtype, kind: str, device: str, pristine: str | None
) -> None:
    model = tiny_model(dtype)
    base = {name: tensor.detach().clone() for name, tensor in model.targets().patchable()}
    tensors = lora_file(model, kind, rank=8)
    for module in model.roots().values():
        module.to(device)
    targets = model.targets()
    pointers = {name: tensor.data_ptr() for name, tensor in targets.patchable()}
    patcher = LoraPatcher(targets, pristine_device=pristine)
    lora = parse_lora(save(tensors), targets)
    changes = {}
    for name in lora.layers:
        stem = kohya_stem(name)
        parts = {key.removeprefix(f"{stem}."): tensor for key, tensor in tensors.items()
                 if key.startswith(f"{stem}.")}  # fmt: skip
        changes[name] = 0.9 * exact_change(parts, base[f"{name}.weight"])

    for factors in (lora, lora.to(device)):
        with patcher.applied([(factors, 0.9)]):
            for name, change in changes.items():
                weight = base[f"{name}.weight"].double()
                found = targets.modules[name].weight.detach().cpu()
                assert ulps(found, weight + change, weight.abs() + change.abs()) <= 1, name
    for name, tensor in targets.patchable():
        assert tensor.data_ptr() == pointers[name]
        assert torch.equal(tensor.detach().cpu(), base[name])
    patcher.verify_full()


def test_the_unit_in_the_last_place_ends_at_the_smallest_subnormal_number() -> None:
    smallest = 2.0**-24
    found = torch.tensor([smallest], dtype=torch.float16)
    for exact, expected in ((0.6 * smallest, 0.4), (2.5 * smallest, 1.5), (0.0, 1.0)):
        whole = torch.tensor([exact], dtype=torch.float64)
        assert ulps(found, whole, whole) == pytest.approx(expected)
