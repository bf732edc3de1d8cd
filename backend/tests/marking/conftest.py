"""What these tests share: pictures are small, since each is read by a process of its own, and
looked through for watermarks."""

from __future__ import annotations

import pytest

from sdxl_contract.limits import ModelLimits
from testkit.doubles.inference_double import InferenceDouble


@pytest.fixture
def inference() -> InferenceDouble:
    return InferenceDouble(limits=ModelLimits(native_size=512))
