"""Fixtures of the LoRA tests: one small model per dtype, shared as every test restores it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from testkit.loras.making import Rig


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """These matrices are tiny: a second thread on a busy machine costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["bfloat16", "float16", "float32"])
def any_rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(getattr(torch, request.param))


@pytest.fixture(scope="session")
def rig() -> Rig:
    return Rig(torch.bfloat16)
