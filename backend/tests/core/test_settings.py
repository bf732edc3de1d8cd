"""What settings come to together."""

from __future__ import annotations

from typing import Any

import pytest

from app.core.settings import Settings


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({"modal_endpoint_url": "http://127.0.0.1:8001"}, 15.0),
        # A look would keep the container of a scale-to-zero endpoint awake, and paid for.
        ({"modal_endpoint_url": "https://x--sdxl.modal.run"}, 86400.0),
        ({"modal_endpoint_url": "https://x--sdxl.modal.run", "model_refresh_seconds": 15}, 15.0),
    ],
)
def test_a_serverless_endpoint_is_looked_at_rarely_unless_told(
    values: dict[str, Any], seconds: float
) -> None:
    assert Settings(**values).model_look_seconds == seconds
