"""The worker's settings: read from the environment, refused by name, and all of them documented."""

from __future__ import annotations

import re
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from sdxl_contract import prices
from sdxl_worker.deploying.settings import Deployment
from sdxl_worker.settings import Dtype, Settings

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


@pytest.fixture(autouse=True)
def _no_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_defaults_need_nothing_and_open_nothing() -> None:
    settings = Settings()

    assert settings.is_loopback
    assert settings.worker_api_token is None
    assert not settings.lora_allow_loopback
    assert settings.dtype is Dtype.AUTO


def test_the_environment_is_read_by_names_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_MAX", "3")
    monkeypatch.setenv("DTYPE", "float16")
    monkeypatch.setenv("LORA_ALLOWED_HOSTS", " Bucket.example.com, .r2.example ,")
    monkeypatch.setenv("GPU_NAME", "")

    settings = Settings()

    assert (settings.queue_max, settings.dtype) == (3, Dtype.FLOAT16)
    assert settings.lora_allowed_hosts == ("bucket.example.com", ".r2.example")
    assert settings.gpu_name is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUEUE_MAX", "0"),
        ("WORKER_PORT", "65536"),
        ("DTYPE", "int8"),
        ("DEVICE", "gpu"),
        ("DEVICE", "cuda:x"),
        ("LOG_FORMAT", "xml"),
        ("LORA_MAX_BYTES", "-1"),
        ("LORA_DOWNLOAD_TIMEOUT_SECONDS", "inf"),
        ("RESULT_KEEP_SECONDS", "nan"),
        ("USD_PER_SECOND", "-0.1"),
        ("LORA_ALLOWED_HOSTS", "https://bucket.example.com"),
        ("LORA_ALLOWED_HOSTS", "bucket.example.com:443"),
        ("LORA_ALLOWED_HOSTS", "*.example.com"),
        ("WORKER_API_TOKEN", " "),
        ("WORKER_API_TOKEN", "two words"),
        ("WORKER_API_TOKEN", "schlüssel-schlüssel"),
        ("WORKER_API_TOKEN", "fifteen-letters"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ValidationError) as refusal:
        Settings()

    assert [error["loc"][0] for error in refusal.value.errors()] == [name.lower()]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "worker.example"])
def test_an_open_door_needs_a_token(host: str) -> None:
    with pytest.raises(ValidationError, match="WORKER_API_TOKEN is unset"):
        Settings(worker_host=host)

    token: Any = "t" * 16
    assert Settings(worker_host=host, worker_api_token=token).worker_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert Settings(worker_host=host).is_loopback


def test_secrets_are_masked_where_settings_are_shown() -> None:
    secret: Any = "hunter2-hunter2-hunter2"
    settings = Settings(worker_api_token=secret, huggingface_hub_token=secret)

    assert "hunter2" not in repr(settings) + str(settings.model_dump())


def test_the_server_names_what_is_wrong_and_ends() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sdxl_worker.serve"],
        env={"PATH": "/usr/bin:/bin", "QUEUE_MAX": "0", "WORKER_API_TOKEN": "two hunter2"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "WORKER_API_TOKEN",
        "QUEUE_MAX",
    ]
    assert "hunter2" not in result.stderr


# --- the README -----------------------------------------------------------------------------------


def rows(text: str) -> dict[str, str]:
    """Name → default of every table row that begins with a setting's name."""
    found = re.findall(r"^\| `([A-Z][A-Z_]+)` \| ([^|]*) \| ([^|]+) \|$", text, re.MULTILINE)
    return {name: default.strip() for name, default, _ in found}


def shown_default(settings: type[BaseSettings], field: str) -> str:
    value: Any = settings.model_fields[field].get_default(call_default_factory=True)
    if value is None or value in ((), ""):
        return "unset"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, bool):
        value = str(value).lower()
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def expected_rows() -> dict[str, str]:
    wanted = {name.upper(): shown_default(Settings, name) for name in Settings.model_fields}
    for name in Deployment.model_fields:
        if not name.startswith("base_model"):  # one setting with the worker's
            wanted[f"DEPLOY_{name.upper()}"] = shown_default(Deployment, name)
    return wanted


def test_the_readme_lists_every_setting_with_its_default() -> None:
    assert rows(README) == expected_rows()


def test_a_setting_missing_from_the_readme_would_be_noticed() -> None:
    shorter = "\n".join(line for line in README.splitlines() if "`QUEUE_MAX`" not in line)

    assert set(expected_rows()) - set(rows(shorter)) == {"QUEUE_MAX"}


def test_the_readme_s_prices_are_those_of_the_table() -> None:
    fields = Deployment.model_fields
    beside = (
        fields["cpu"].default * prices.CPU_CORE_USD_PER_SECOND
        + fields["memory_mib"].default / 1024 * prices.MEMORY_GIB_USD_PER_SECOND
    )
    idle = fields["scaledown_window_seconds"].default
    for gpu, usd in prices.USD_PER_SECOND.items():
        container = usd + beside
        assert (
            f"| `{gpu}` | {usd:.6f} | {container:.6f} | {container * 3600:.2f} "
            f"| {container * idle:.3f} |"
        ) in README
    assert f"as read on {prices.PRICES_AS_OF}" in README
    default = prices.USD_PER_SECOND[fields["gpu"].default[0]] + beside
    assert f"are about {default * 3600 * 24 * 30:.0f} USD" in README
    assert f"at {default * 3600 * fields['max_containers'].default:.2f} USD" in README
    assert f"are {default * 10:.3f} USD" in README
