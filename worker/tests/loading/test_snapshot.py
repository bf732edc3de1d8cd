"""What runs before a snapshot: torch is asked, the GPU's driver is not."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch

from sdxl_worker.loading.snapshot import without_cuda


@pytest.mark.parametrize("before", [None, "1,0"])
def test_without_cuda_torch_answers_by_itself_and_the_environment_is_as_before(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def driver() -> int:
        asked.append("driver")
        return 0

    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", driver, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    environment = dict(os.environ)
    with contextlib.suppress(RuntimeError), without_cuda():
        assert not torch.cuda.is_available()
        assert torch.cuda.device_count() == 0
        assert asked == []
        raise RuntimeError

    assert dict(os.environ) == environment
    # The control: outside the same question does go to the driver.
    assert not torch.cuda.is_available()
    assert asked == ["driver"]
