"""What reaches standard error: one JSON object a line, without secrets."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from sdxl_worker.watching.logs import configure_logging

SECRET = "hunter2hunter2hunter2"
PRESIGNED = f"https://acct.r2.example/bucket/private-name/v1.safetensors?X-Amz-Signature={SECRET}"


def test_neither_structured_nor_library_logs_hold_a_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        configure_logging("json")
        try:
            raise ValueError(f"planted {PRESIGNED}")
        except ValueError:
            structlog.get_logger().exception("failed", url=PRESIGNED, token=SECRET)
            logging.getLogger("library").warning("failed", exc_info=True)
        logging.getLogger("library").warning("GET %s", PRESIGNED)
    finally:
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()

    said = capsys.readouterr().err
    assert SECRET not in said
    assert "private-name" not in said
    assert json.loads(said.splitlines()[0])["event"] == "failed"
    assert said.count("ValueError: planted https://acct.r2.example/***") == 2
