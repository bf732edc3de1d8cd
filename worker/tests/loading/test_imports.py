"""What is arranged for the libraries before they are imported, and undone afterwards."""

from __future__ import annotations

import builtins
import gc
import os
import subprocess
import sys
from typing import Any

import pytest

from sdxl_worker.loading.imports import import_libraries

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """A failure planted into their first import would leave them half there for all other tests."""
    import_libraries()
    gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_collector_is_paused_during_the_imports_and_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, fails: bool
) -> None:
    seen: list[bool] = []
    honest = builtins.__import__

    def noting(name: str, *rest: Any) -> Any:
        if name == "diffusers":
            seen.append(gc.isenabled())
            if fails:
                raise ImportError("planted")
        return honest(name, *rest)

    if not enabled:
        gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", noting)
            if fails:
                with pytest.raises(ImportError, match="planted"):
                    import_libraries()
            else:
                import_libraries()
        assert seen == [False]
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_process_that_draws_looks_for_no_garbage_in_what_stays() -> None:
    code = (
        "import gc, sys\n"
        "from sdxl_worker.loading.imports import share_the_interpreter\n"
        "kept = [[] for _ in range(1000)]\n"
        "share_the_interpreter()\n"
        "print(gc.get_freeze_count() > 1000, sys.getswitchinterval())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert told.split() == ["True", "0.001"]


@pytest.mark.parametrize(("own", "turns"), [(None, 0), ("active", 30_000_000_000)])
def test_threads_that_wait_leave_the_core_to_others(own: str | None, turns: int) -> None:
    """As OpenMP's own library says how long it spins, when torch loads it."""
    told = {} if own is None else {"OMP_WAIT_POLICY": own}
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    # Of what it imports, torch alone, after what is set before: the other two take seconds.
    code = (
        "import contextlib, sys; sys.modules['diffusers'] = None\n"
        "from sdxl_worker.loading.imports import import_libraries\n"
        "assert 'torch' not in sys.modules\n"
        "with contextlib.suppress(ImportError): import_libraries()\n"
        "import torch"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=others | told | {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr
