"""The same promises on a GPU: exact merges, bit-exact restores, pristine copy on either side."""

from __future__ import annotations

import pytest
import torch

from sdxl_worker.lora import LoraPatcher, parse_lora
from testkit.lora import kohya_stem, lora_file, save, tiny_model
from testkit.lora_oracle import exact_change

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("pristine", [None, "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "loha", "dora-in"])
def test_merge_and_restore_are_exact_on_a_gpu(
    dtype: torch.dtype, kind: str, pristine: str | None
) -> None:
    model = tiny_model(dtype)
    base = {name: tensor.detach().clone() for name, tensor in model.targets().patchable()}
    tensors = lora_file(model, kind, rank=8)
    for module in model.roots().values():
        module.to("cuda")
    targets = model.targets()
    pointers = {name: tensor.data_ptr() for name, tensor in targets.patchable()}
    patcher = LoraPatcher(targets, pristine_device=pristine)
    lora = parse_lora(save(tensors), targets)
    mantissa = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    for factors in (lora, lora.to("cuda")):
        with patcher.applied([(factors, 0.9)]):
            for name in lora.layers:
                stem, weight = kohya_stem(name), base[f"{name}.weight"]
                parts = {key.removeprefix(f"{stem}."): tensor for key, tensor in tensors.items()
                         if key.startswith(f"{stem}.")}  # fmt: skip
                change = 0.9 * exact_change(parts, weight)
                exact = weight.double() + change
                size = torch.maximum(exact.abs(), 1e-3 * (weight.double().abs() + change.abs()))
                unit = torch.ldexp(torch.ones_like(exact), torch.frexp(size)[1] - mantissa)
                # Below its normal numbers a type has no finer steps.
                unit = unit.clamp(min=torch.finfo(dtype).smallest_normal * 2.0 ** (1 - mantissa))
                found = targets.modules[name].weight.detach().cpu().double()
                assert ((found - exact).abs() / unit).max() <= 1, name
    for name, tensor in targets.patchable():
        assert tensor.data_ptr() == pointers[name]
        assert torch.equal(tensor.detach().cpu(), base[name])
    patcher.verify_full()
