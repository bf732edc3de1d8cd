"""What `auto` means on which device."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdxl_worker.loading.pipeline import choose_dtype
from sdxl_worker.settings import Dtype


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(7, torch.float16), (8, torch.bfloat16), (9, torch.bfloat16)],
    ids=["T4", "A100", "H100"],
)
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(
    monkeypatch: pytest.MonkeyPatch, generation: int, expected: torch.dtype
) -> None:
    asked: list[Any] = []

    def properties(device: Any) -> SimpleNamespace:
        return SimpleNamespace(major=generation)

    @contextlib.contextmanager
    def on(device: Any) -> Any:
        asked.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    monkeypatch.setattr(torch.cuda, "device", on)
    device = torch.device("cuda:1")

    assert choose_dtype(Dtype.AUTO, device) is expected
    assert asked == [device]


def test_a_cpu_gets_float32_and_a_stated_precision_is_taken_as_it_is() -> None:
    assert choose_dtype(Dtype.AUTO, torch.device("cpu")) is torch.float32
    assert choose_dtype(Dtype.BFLOAT16, torch.device("cpu")) is torch.bfloat16
