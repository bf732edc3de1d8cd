"""The collector is paused while the libraries are imported, and only then."""

from __future__ import annotations

import builtins
import gc
from typing import Any

import pytest

from sdxl_worker.loading.imports import import_libraries


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
