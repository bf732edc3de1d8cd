"""A model is known by its weights: not by names, layout or where they lie; each bit counts."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdxl_worker.loading import identity
from sdxl_worker.loading.identity import LaterIdentity, weights_identity
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.lora import LoraPatcher, lora_targets, parse_lora
from sdxl_worker.settings import Settings
from testkit.worker import MODEL, kohya_lora


class Renamed(nn.Module):
    """The same layers under another name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.text_model = inner


def part(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(5, 3, bias=False))


@pytest.fixture
def pipe() -> SimpleNamespace:
    return SimpleNamespace(unet=part(1), text_encoder=part(2), text_encoder_2=part(3), vae=part(4))


def test_the_same_weights_are_the_same_model_however_they_lie(pipe: SimpleNamespace) -> None:
    before = weights_identity(pipe)
    assert len(before) == 32

    pipe.unet.to(memory_format=torch.channels_last)
    assert weights_identity(pipe) == before
    pipe.text_encoder = Renamed(pipe.text_encoder)
    assert weights_identity(pipe) == before
    weight = pipe.vae[2].weight
    in_a_file = torch.zeros(weight.numel() + 3)[3:].view(weight.shape)  # not where a word begins
    pipe.vae[2].weight = nn.Parameter(in_a_file.copy_(weight.detach()))
    assert weights_identity(pipe) == before


def test_one_element_another_precision_or_another_place_is_another_model(
    pipe: SimpleNamespace,
) -> None:
    seen = {weights_identity(pipe)}
    with torch.no_grad():
        pipe.vae[2].weight[1, 1] += 1e-6
    seen.add(weights_identity(pipe))
    pipe.unet.to(torch.bfloat16)
    seen.add(weights_identity(pipe))
    pipe.text_encoder, pipe.text_encoder_2 = pipe.text_encoder_2, pipe.text_encoder
    seen.add(weights_identity(pipe))
    assert len(seen) == 4


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [True, False])
def test_what_is_computed_later_is_that_of_the_start_whatever_lora_is_applied_meanwhile(
    mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(Settings(base_model=str(MODEL), device="cpu", map_weights=mapped))
    pipe = model.pipe
    targets = lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    before = weights_identity(pipe)
    patcher = LoraPatcher(targets, kept=model.mapped)
    go, plain = threading.Event(), identity._flat

    def slow(tensor: Any) -> Any:
        go.wait(60)
        return plain(tensor)

    monkeypatch.setattr(identity, "_flat", slow)
    later = LaterIdentity(pipe, patcher.unwritten)
    lora = parse_lora(kohya_lora(targets.shapes), targets)
    with patcher.applied([(lora, 1.0)]):
        early = later.known
        go.set()
        assert early is None
        assert later.wait() == later.known == before
        # The control: read from the weights themselves it would be another model.
        assert weights_identity(pipe) != before


def test_an_identity_that_cannot_be_computed_says_so_to_who_waits(
    pipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> bytes:
        raise OSError("the file went away")

    monkeypatch.setattr(identity, "_flat", broken)
    later = LaterIdentity(pipe, lambda tensor: tensor)
    with pytest.raises(OSError, match="went away"):
        later.wait()
    assert later.known is None
