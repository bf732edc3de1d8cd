"""Layers by kernels of our own: used where they give torch's bits, and found out where not."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import cpp_extension

from sdxl_worker import serve
from sdxl_worker.kernels import cuda as cuda_kernels
from sdxl_worker.kernels import modules as modules_
from sdxl_worker.kernels.cuda import CudaKernels
from sdxl_worker.kernels.modules import (
    Quick,
    QuickGEGLU,
    QuickGroupNorm,
    gated,
    quicken,
    quicken_on,
)
from sdxl_worker.kernels.source import NAMES
from testkit.worker import settings

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_size_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules_, "_EAGERLY_FROM", 0)


class TorchKernels:
    """A double that computes by torch itself; `off_by` is added to what it gives."""

    def __init__(self, off_by: float = 0.0) -> None:
        self.off_by, self.calls = off_by, 0

    def group_norm(
        self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor | None:
        self.calls += 1
        if not x.is_contiguous():
            return None
        return self._off(functional.group_norm(x, groups, weight, bias, eps))

    def geglu(self, x: Tensor) -> Tensor | None:
        self.calls += 1
        return self._off(gated(x))

    def _off(self, found: Tensor) -> Tensor:
        # Not 0.0, which makes another number of -0.0.
        return found + self.off_by if self.off_by else found


def quick(kernels: Any, *, capturing: bool = False) -> Quick:
    return Quick(kernels, lambda: capturing)


def layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"norm": nn.GroupNorm(4, 16), "feed": GEGLU(16, 8)}).requires_grad_(False)


def called(modules: nn.ModuleDict, size: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(size)
    return modules["norm"](torch.randn(2, 16, size, 4)), modules["feed"](torch.randn(2, size, 16))


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_a_shape_is_compared_once_and_then_comes_from_the_kernels() -> None:
    plain, modules, kernels = layers(), layers(), TorchKernels()
    made = quick(kernels)
    assert quicken([modules], made) == 2
    assert isinstance(modules["norm"], QuickGroupNorm)
    assert isinstance(modules["feed"], QuickGEGLU)
    for _ in range(3):
        assert same(called(modules), called(plain))
    assert (kernels.calls, made.off) == (6, {})
    kernels.off_by = 1.0  # what is known as right is not computed by torch any more
    assert not same(called(modules), called(plain))
    assert same(called(modules, 12), called(plain, 12))
    assert sorted(made.off) == ["geglu", "group_norm"]


def test_a_kernel_that_is_off_by_one_bit_is_never_used() -> None:
    plain, modules, kernels = layers(), layers(), TorchKernels(off_by=2**-20)
    made = quick(kernels)
    quicken([modules], made)
    for _ in range(3):
        assert same(called(modules), called(plain))
    assert made.off == dict.fromkeys(["group_norm", "geglu"], "its bits differ")
    assert kernels.calls == 2


def test_a_kernel_that_fails_is_never_used() -> None:
    class Failing(TorchKernels):
        def geglu(self, x: Tensor) -> Tensor | None:
            raise RuntimeError("no such function")

    plain, modules = layers(), layers()
    made = quick(Failing())
    quicken([modules], made)
    for _ in range(2):
        assert same(called(modules), called(plain))
    assert made.off == {"geglu": "RuntimeError('no such function')"}


def test_within_a_recording_nothing_is_compared_and_torchs_way_is_recorded() -> None:
    modules, kernels = layers(), TorchKernels(off_by=1.0)
    made = quick(kernels, capturing=True)
    quicken([modules], made)
    assert same(called(modules), called(layers()))
    assert (kernels.calls, made.off) == (0, {})


def test_a_small_group_norm_comes_from_the_kernels_in_recordings_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modules_, "_EAGERLY_FROM", 1 << 20)
    now = [False]
    kernels = TorchKernels()
    modules = layers()
    quicken([modules], Quick(kernels, lambda: now[0]))
    x = torch.randn(2, 16, 8, 4)
    for capturing, calls in ((False, 1), (False, 1), (True, 2), (False, 2), (True, 3)):
        now[0] = capturing
        modules["norm"](x)
        assert kernels.calls == calls


def test_what_lies_in_another_way_is_left_to_torch() -> None:
    modules, kernels = layers(), TorchKernels()
    quicken([modules], quick(kernels))
    x = torch.randn(2, 16, 8, 4)
    turned = x.to(memory_format=torch.channels_last)
    plain = layers()["norm"]
    for one in (x, turned, x):
        assert torch.equal(modules["norm"](one), plain(one))


def test_other_classes_stay_and_copies_share_what_is_known() -> None:
    class Own(nn.GroupNorm):
        pass

    own = Own(4, 16)
    modules = nn.ModuleDict({"own": own, "norm": nn.GroupNorm(4, 16)})
    made = quick(TorchKernels())
    assert quicken([modules], made) == 1
    assert type(own) is Own
    copied: Any = copy.deepcopy(modules)["norm"]
    assert copied.quick is made


def test_numbers_of_all_sizes_are_tried_out() -> None:
    class CoarseEpsilon(TorchKernels):
        def group_norm(
            self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
        ) -> Tensor | None:
            return super().group_norm(x, groups, weight, bias, 1.01 * eps)

    for kernels, off in ((TorchKernels(), []), (CoarseEpsilon(), ["group_norm"])):
        made = quick(kernels)
        made.try_out(CPU, torch.float32)
        assert list(made.off) == off


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_gpu_nothing_is_changed(dtype: torch.dtype) -> None:
    modules = layers()
    assert quicken_on(CPU, dtype, [modules]) is None
    assert type(modules["norm"]) is nn.GroupNorm


def test_it_is_compiled_as_the_layers_it_stands_for() -> None:
    modules, kernels = layers(), TorchKernels()
    quicken([modules], quick(kernels))
    norm: Any = modules["norm"]

    def called_so(x: Tensor) -> Tensor:
        found: Tensor = norm(x)
        return found

    compiled = torch.compile(called_so, fullgraph=True, backend="eager")
    x = torch.randn(2, 16, 8, 4)
    assert torch.equal(compiled(x), layers()["norm"](x))
    assert kernels.calls == 0


@pytest.mark.parametrize("in_threads", [True, False])
def test_kernels_are_compiled_side_by_side_or_else_one_by_one(
    monkeypatch: pytest.MonkeyPatch, in_threads: bool
) -> None:
    """With a double of torch's compiler, as threads may be refused what the first one may do."""
    threads: dict[str, int] = {}

    def compiled(source: str, name: str) -> str:
        assert name in source
        here = threading.get_ident()
        if not in_threads and here != threading.main_thread().ident:
            raise RuntimeError("invalid device context")
        threads[name] = here
        # torch's compiler looks for a toolkit, and raises where there is none.
        cpp_extension.include_paths("cuda")
        return name

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "_compile_kernel", compiled)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(cuda_kernels, "_COMPILED", {})
    with pytest.raises(OSError, match="CUDA_HOME"):
        cpp_extension.include_paths("cuda")
    assert CudaKernels(CPU)._launch == {name: name for name in NAMES}
    assert (threading.main_thread().ident in threads.values()) is not in_threads

    # Once for each device, whoever asks.
    count = len(threads)
    cuda_kernels.compile_early("cpu")
    assert CudaKernels(CPU)._launch == {name: name for name in NAMES}
    assert len(threads) == count

    def broken(source: str, name: str) -> str:
        raise RuntimeError("no NVRTC")

    monkeypatch.setattr(torch.cuda, "_compile_kernel", broken)
    monkeypatch.setattr(cuda_kernels, "_COMPILED", {})
    cuda_kernels.compile_early("cpu")
    with pytest.raises(RuntimeError, match="NVRTC"):
        CudaKernels(CPU)
    assert cpp_extension.CUDA_HOME is None


def test_kernels_are_compiled_early_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, made = threading.Event(), threading.Event(), list[str]()

    def compiled(source: str, name: str) -> str:
        begun.set()
        assert go_on.wait(30)
        made.append(name)
        return name

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "_compile_kernel", compiled)
    monkeypatch.setattr(cuda_kernels, "_COMPILED", {})
    cuda_kernels.compile_early("cpu")
    assert begun.wait(30)
    assert made == []
    go_on.set()
    # Waits for them, and compiles none again.
    assert CudaKernels(CPU)._launch == {name: name for name in NAMES}
    assert sorted(made) == sorted(NAMES)


@pytest.mark.parametrize(
    ("device", "dtype", "begun"),
    [
        ("cuda", "auto", ["cuda"]),
        ("cuda:1", "bfloat16", ["cuda:1"]),
        # Nothing waits for what it does not use, and it would go on beside recordings.
        ("cuda", "float16", []),
        ("cpu", "auto", []),
    ],
)
def test_they_are_compiled_early_where_they_will_be_used(
    device: str, dtype: str, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(cuda_kernels, "compile_early", made.append)
    serve._begin_gpu(settings(device=device, dtype=dtype), None)
    assert made == begun


@pytest.mark.parametrize("room", ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "torch/lib"])
def test_the_compiler_that_came_with_torch_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: str
) -> None:
    loaded: list[str] = []
    for name in ("libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc-builtins.so.13.0"):
        (tmp_path / room).mkdir(parents=True, exist_ok=True)
        (tmp_path / room / name).touch()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("ctypes.CDLL", lambda name, mode: loaded.append(name))
    cuda_kernels._load_nvrtc()
    # What it looks for by its bare name is there before it.
    names = ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]
    assert loaded == [str(tmp_path / room / name) for name in names]


def test_too_little_memory_to_compare_says_nothing_of_a_kernel() -> None:
    class Short(TorchKernels):
        short = True

        def geglu(self, x: Tensor) -> Tensor | None:
            if self.short:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().geglu(x)

    kernels = Short()
    modules, one = layers(), quick(kernels)
    quicken([modules], one)
    x = torch.randn(2, 6, 16)
    for short in (True, False, False):
        kernels.short = short
        assert torch.equal(modules["feed"](x), layers()["feed"](x))
    assert one.off == {}
    assert kernels.calls == 2
