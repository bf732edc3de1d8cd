"""What the tests of the operator's networks share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from testkit.auxiliary.upscalers import compact, esrgan


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an operator has it, with what is none beside it."""
    found = tmp_path_factory.mktemp("upscalers")
    save_file(esrgan(old=True), found / "4x-Old.safetensors")
    save_file(compact(scale=2), found / "compact x2.safetensors")
    (found / "broken.safetensors").write_bytes(b"\xff" * 100)
    (found / "notes.txt").write_text("not one")
    save_file({"a": torch.zeros(3)}, found / "other.safetensors")
    save_file(compact(), found / "latent.safetensors")
    return found
