"""What `auto` means on which device, and pixels of each precision as bytes."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from sdxl_worker.drawing.latents import to_image
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pixels_become_bytes_as_in_diffusers(dtype: torch.dtype) -> None:
    pixels = torch.linspace(-1.2, 1.2, 3 * 128 * 128).to(dtype).view(3, 128, 128)
    theirs = VaeImageProcessor().postprocess(pixels[None], output_type="pil")[0]

    assert to_image(pixels).tobytes() == theirs.tobytes()
