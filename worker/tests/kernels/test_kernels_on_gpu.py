"""Our kernels beside torch's operations on a real GPU: the same bits, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdxl_worker.kernels.cuda import CudaKernels
from sdxl_worker.kernels.modules import gated, quicken_on
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.settings import Settings
from testkit.worker import MODEL

DEVICE, BF16 = torch.device("cuda"), torch.bfloat16
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
        reason="no CUDA device with BF16 here",
    ),
]
# (samples, channels, height, width): SDXL's UNet and VAE, one that is not square, a small one.
SHAPES = [(2, 320, 128, 128), (2, 960, 64, 64), (2, 1920, 32, 32), (1, 512, 128, 128),
          (1, 256, 512, 512), (1, 128, 1024, 1024), (2, 640, 72, 104), (1, 64, 16, 24)]  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(DEVICE)


def same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and torch.equal(one.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_a_group_norm_has_torchs_bits(
    kernels: CudaKernels, shape: tuple[int, ...], size: float
) -> None:
    x = ((torch.randn(shape, device=DEVICE) + 0.5) * size).to(BF16)
    weight, bias = torch.randn(2, shape[1], device=DEVICE).to(BF16)
    for eps in (1e-5, 1e-6):
        wanted = torch.nn.functional.group_norm(x, 32, weight, bias, eps)
        assert same(kernels.group_norm(x, 32, weight, bias, eps), wanted)


@pytest.mark.parametrize("shape", [(2, 4096, 5120), (2, 1024, 10240), (3, 77, 48), (1, 1, 16)])
def test_a_geglu_has_torchs_bits(kernels: CudaKernels, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=DEVICE).to(BF16) * 3
    x.view(-1)[:4] = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0])
    assert same(kernels.geglu(x), gated(x))


def test_what_the_kernels_do_not_take_is_left(kernels: CudaKernels) -> None:
    x = torch.randn(1, 64, 16, 16, device=DEVICE).to(BF16)
    weight, bias = torch.randn(2, 64, device=DEVICE).to(BF16)
    for other in (x.float(), x.to(memory_format=torch.channels_last), x[:, :, :, :3].contiguous(),
                  x[:, :, :2, :4].contiguous()):  # fmt: skip
        assert kernels.group_norm(other, 32, weight, bias, 1e-5) is None
    assert kernels.geglu(x[..., :6].contiguous()) is None
    assert kernels.geglu(x.float()) is None


def test_a_models_layers_are_quickened_and_none_differs() -> None:
    model = load_model(Settings(base_model=str(MODEL), device="cuda", dtype="bfloat16"))
    quick = quicken_on(DEVICE, BF16, [model.pipe.unet, model.pipe.vae])
    assert quick is not None
    assert quick.off == {}
