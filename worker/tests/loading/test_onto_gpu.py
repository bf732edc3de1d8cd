"""Weights go to a GPU by way of pinned memory: the same bits and layout, or what `.to` makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor, nn

from sdxl_worker.loading import onto_gpu, pipeline
from sdxl_worker.loading.onto_gpu import Staging, move

CPU = torch.device("cpu")


class Event:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Counted(Staging):
    """Copies as a GPU's would, to the CPU."""

    def __init__(self, chunk: int) -> None:
        super().__init__(CPU, chunk)
        self.sizes: list[int] = []
        self.waited = 0

    def copied(self, source: Tensor) -> Tensor:
        assert source.dtype is torch.uint8
        self.sizes.append(len(source))
        return super().copied(source)

    def wait(self) -> None:
        super().wait()
        self.waited += 1


class Parts(nn.Module):
    """Every kind of tensor that a model may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.weight.data = self.conv.weight.data.to(memory_format=torch.channels_last)
        self.linear = nn.Linear(5, 3, dtype=torch.bfloat16)
        self.tied = nn.Linear(5, 3, bias=False)
        self.tied.weight = self.linear.weight
        self.register_buffer("places", torch.arange(7))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("one", torch.tensor(2.5))
        self.register_buffer("none", torch.empty(0, 4))
        self.register_buffer("repeated", torch.rand(1, 3).expand(4, 3))


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 16, 1 << 16])
def test_every_tensor_comes_whole_and_in_its_own_layout(chunk: int, dtype: torch.dtype) -> None:
    parts = Parts()
    known = {name: (one, one.clone(), one.data_ptr()) for name, one in parts.state_dict().items()}
    parameters = dict(parts.named_parameters())
    copies = Counted(chunk)
    move([parts], copies, CPU, dtype)

    for name, one in parts.state_dict().items():
        before, value, place = known[name]
        kind = dtype if before.is_floating_point() else before.dtype
        # Cast as on the CPU, once.
        assert torch.equal(one, value.to(kind))
        assert (one.dtype, one.shape) == (kind, value.shape)
        # What is repeated in memory is not once it is cast, as everywhere in torch.
        assert one.stride() == before.stride() or (name == "repeated" and kind is not before.dtype)
        if kind is before.dtype:
            dense = name not in ("none", "repeated")
            assert (one.data_ptr() != place) == dense, name
    # The same objects, tied ones still tied.
    assert all(dict(parts.named_parameters())[name] is one for name, one in parameters.items())
    assert parts.tied.weight is parts.linear.weight
    assert copies.waited == 1
    assert sum(copies.sizes) >= sum(one.nbytes for one in parts.parameters())


class Pipe:
    """Of a pipeline what `_place` uses."""

    def __init__(self) -> None:
        self.unet, self.scheduler = nn.Linear(2, 2), object()
        self.asked: list[torch.device] = []

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet, "scheduler": self.scheduler, "safety_checker": None}

    def to(self, device: torch.device) -> None:
        self.asked.append(device)


FAULTS = (
    None,
    RuntimeError("no memory to pin"),
    torch.OutOfMemoryError("CUDA out of memory"),
    AssertionError("Torch not compiled with CUDA enabled"),
)


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_happens_the_pipeline_itself_moves_what_is_left(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    moved: list[nn.Module] = []

    def staging(device: torch.device) -> Any:
        if fault is not None:
            raise fault
        return SimpleNamespace(copied=lambda row: row.clone(), wait=lambda: None)

    monkeypatch.setattr(onto_gpu, "Staging", staging)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    original = onto_gpu.move

    def told(modules: list[nn.Module], *rest: Any) -> None:
        moved.extend(modules)
        original(modules, *rest)

    monkeypatch.setattr(onto_gpu, "move", told)
    pipe, cuda = Pipe(), torch.device("cuda")
    with structlog.testing.capture_logs() as logs:
        pipeline._place(pipe, cuda, torch.float32, channels_last=None)
    assert pipe.asked == [cuda]
    assert moved == ([pipe.unet] if fault is None else [])
    assert [one["event"] for one in logs] == ([] if fault is None else ["weights_not_staged"])


def test_a_cpu_keeps_its_weights_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else mapped files would be read in whole."""
    monkeypatch.setattr(pipeline, "move_onto_gpu", lambda *_: pytest.fail("moved"))
    pipe = Pipe()
    pipeline._place(pipe, CPU, torch.float32, channels_last=None)
    assert pipe.asked == [CPU]
