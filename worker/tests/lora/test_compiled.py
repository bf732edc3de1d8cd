"""Compiled models: swapping weights in place leaves their graphs valid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdxl_worker.lora import LoraPatcher, lora_targets, parse_lora
from testkit.loras.making import TinyModel, lora_file, model_hashes, save, tiny_model


def shallow_model() -> TinyModel:
    """One transformer block deep everywhere and one width: one graph serves every block.

    Compiling takes nearly all of this test's time, and takes it for each shape anew.
    """
    return tiny_model(torch.float32, widths=(32, 32, 32), depths=(1, 1, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_fifty_swaps_of_a_compiled_unet_recompile_nothing() -> None:
    model, eager = shallow_model(), shallow_model()
    model.unet.compile_repeated_blocks()
    targets = lora_targets(model.unet)
    patcher = LoraPatcher(targets)
    reference = LoraPatcher(lora_targets(eager.unet))
    before = model_hashes(model)
    torch.manual_seed(0)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, 7, 80),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 48), "time_ids": torch.ones(1, 6)},
    }

    def drawn(unet: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = unet(**inputs).sample
        return result

    base = drawn(model.unet)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    names = [name for name in targets.shapes if name.endswith(("to_q", "to_v", "ff.net.2"))]
    for number in range(50):
        data = save(lora_file(model, "lora", modules=names, seed=number))
        lora = parse_lora(data, targets)
        with patcher.applied([(lora, 1.0)]):
            changed = drawn(model.unet)
            if number % 10 == 0:
                with reference.applied([(lora, 1.0)]):
                    assert torch.allclose(changed, drawn(eager.unet), atol=1e-4)
            assert not torch.equal(changed, base)
        if number % 10 == 0:
            assert torch.equal(drawn(model.unet), base)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert model_hashes(model) == before


@pytest.mark.slow
def test_a_compiled_wrapper_is_looked_through() -> None:
    model = tiny_model(torch.float32)
    wrapped: Any = torch.compile(model.unet)
    assert lora_targets(wrapped).shapes == lora_targets(model.unet).shapes
