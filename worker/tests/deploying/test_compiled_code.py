"""Compiled code that containers share never stops a start, whatever lies on its volume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdxl_worker.deploying.compiled_code import CompiledCode, kind_of, quietly

KIND = "torch2-triton3-gpu"


class Torch:
    """What torch would hold of one process: names of what was compiled there."""

    def __init__(self, *compiled: str) -> None:
        self.names = set(compiled)

    def load(self, data: bytes) -> list[str]:
        names = data.decode("ascii").split(",")
        self.names |= set(names)
        return names

    def save(self) -> tuple[bytes, list[str]] | None:
        return (",".join(sorted(self.names)).encode(), sorted(self.names)) if self.names else None


def shared(
    folder: Path, torch: Torch, kind: str = KIND, max_bytes: int = 1000, all_bytes: int = 1000
) -> CompiledCode:
    return CompiledCode(
        folder, kind, load=torch.load, save=torch.save, max_bytes=max_bytes, all_bytes=all_bytes
    )


def kept(folder: Path, *names: str, kind: str = KIND) -> Path:
    assert shared(folder, Torch(*names), kind).keep()
    return folder / kind / "code.bin"


def test_what_one_container_compiled_the_next_one_has(tmp_path: Path) -> None:
    kept(tmp_path, "unet", "unet-cfg")
    second = Torch()
    code = shared(tmp_path, second)

    assert code.take()
    assert second.names == {"unet", "unet-cfg"}
    # It compiled nothing itself: the volume need not be written.
    assert not code.keep()
    second.names.add("another shape")
    assert code.keep()
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_nothing_is_taken_or_kept_where_there_is_nothing(tmp_path: Path) -> None:
    code = shared(tmp_path, Torch())

    assert not code.take()
    assert not code.keep()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["cut", "changed", "empty", "foreign", "folder", "unreadable"])
def test_what_is_broken_or_foreign_is_compiled_anew_and_replaced(
    tmp_path: Path, fault: str
) -> None:
    path = kept(tmp_path, "unet")
    whole = path.read_bytes()
    if fault == "folder":
        path.unlink()
        path.mkdir()
    elif fault == "unreadable":  # whole, but nothing that this torch knows
        shared(tmp_path, Torch("é")).keep()
    else:
        path.write_bytes(
            {
                "cut": whole[:-1],
                "changed": whole[:-1] + bytes([whole[-1] ^ 1]),
                "empty": b"",
                "foreign": b"\x80\x04 an object of somebody else's",
            }[fault]
        )
    torch = Torch()
    code = shared(tmp_path, torch)

    assert not code.take()
    assert not torch.names
    torch.names = {"unet"}
    assert code.keep() is (fault != "folder")
    if fault != "folder":
        assert path.read_bytes() == whole


def test_what_is_too_large_is_neither_taken_nor_kept(tmp_path: Path) -> None:
    kept(tmp_path, "x" * 100)
    small = shared(tmp_path, Torch("y" * 100), max_bytes=50)

    assert not small.take()
    assert not small.keep()


def test_other_kinds_go_when_all_together_are_too_large(tmp_path: Path) -> None:
    old, new = (kept(tmp_path, "x" * 100, kind=kind) for kind in ("old", "new"))
    os.utime(old, (1, 1))

    assert shared(tmp_path, Torch("y" * 100), all_bytes=300).keep()
    assert not old.parent.exists()
    assert new.exists()


def test_a_volume_that_cannot_be_written_or_reached_stops_nothing(tmp_path: Path) -> None:
    def commit() -> None:
        raise ConnectionError("the platform is away")

    quietly(commit)
    (tmp_path / "file").write_text("")

    assert not shared(tmp_path / "file", Torch("unet")).keep()


def test_a_kind_is_a_folder_s_name_with_what_code_depends_on() -> None:
    import torch

    kind = kind_of("cpu")

    assert kind.startswith(f"torch{torch.__version__}-triton")
    assert "/" not in kind
    assert " " not in kind


_COMPILES = """
import pathlib, sys, torch
from torch._dynamo.utils import counters
from sdxl_worker.deploying.compiled_code import CompiledCode, kind_of
code = CompiledCode(pathlib.Path(sys.argv[1]), kind_of("cpu"))
taken = code.take()
torch.compile(lambda x: (x * 2).sin() + 1, fullgraph=True)(torch.ones(64))
found = counters["inductor"]
print(taken, found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], code.keep())
"""


@pytest.mark.long
@pytest.mark.process
def test_torch_itself_compiles_only_once(tmp_path: Path) -> None:
    """With the real one, in processes of their own, each with an empty cache of its own."""

    def start(number: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", _COMPILES, str(tmp_path / "volume")],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"own{number}")},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()[-1]

    assert start(1) == "False 0 1 True"
    assert start(2) == "True 1 0 False"
    (file,) = (tmp_path / "volume").rglob("code.bin")
    file.write_bytes(file.read_bytes()[:-100])
    assert start(3) == "False 0 1 True"
