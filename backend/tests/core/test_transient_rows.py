"""Rows that never meet a session: what was not given is None, and there is nothing but columns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.models import Content

_BACKEND = Path(__file__).resolve().parents[2]


@pytest.mark.process
def test_the_first_use_of_a_table_in_a_process_may_be_a_transient_row() -> None:
    use = "from app.models import Content; one = Content.transient(prompt='x'); print(one.batch_id)"
    run = subprocess.run(
        [sys.executable, "-c", use], cwd=_BACKEND, capture_output=True, text=True, check=False
    )
    assert run.stdout == "None\n", run.stderr


def test_a_name_that_is_no_column_is_refused() -> None:
    with pytest.raises(TypeError, match="Content has no promt"):
        Content.transient(promt="an apple")
