"""Every setting of the backend, read once from the environment.

Duty: names, units, defaults and what they need of each other.
Must not know: what uses them.
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.store_address import clean_url, public_url, store, unwrapped

_MIB = 2**20


class SettingsError(ValueError):
    """A setting is missing or does not go with another; the message says which."""


class LoraProvider(StrEnum):
    """Who draws the pictures."""

    MODAL_SDXL_LORA = "modal_sdxl_lora"
    REPLICATE = "replicate"


class Settings(BaseSettings):
    """The backend's settings; the environment name is the field's in capitals. Empty is unset."""

    model_config = SettingsConfigDict(
        env_file=None, env_ignore_empty=True, extra="ignore", frozen=True, case_sensitive=False
    )

    # The worker
    lora_provider: LoraProvider = Field(
        default=LoraProvider.MODAL_SDXL_LORA, description="who draws: modal_sdxl_lora or replicate"
    )
    modal_endpoint_url: str | None = Field(
        default=None, description="the worker's POST /generate-image, full URL"
    )
    modal_control_url: str | None = Field(
        default=None,
        description="answers health, states and cancels of the worker's instead of it: on Modal a "
        "function without a GPU, which `make deploy` prints",
    )
    modal_api_token: SecretStr | None = Field(
        default=None, description="bearer token that the worker asks for"
    )
    modal_proxy_key: SecretStr | None = Field(
        default=None, description="Modal proxy auth: token id, sent as Modal-Key"
    )
    modal_proxy_secret: SecretStr | None = Field(
        default=None, description="Modal proxy auth: token secret, sent as Modal-Secret"
    )
    modal_timeout_seconds: float = Field(
        default=300.0, gt=0, le=3600, description="seconds for one picture, all retries included"
    )
    modal_max_retries: int = Field(
        default=3, ge=0, le=20, description="retries after the first attempt"
    )
    modal_retry_backoff_base: float = Field(
        default=1.0, ge=0, le=60, description="seconds before the first retry; doubles each time"
    )
    replicate_api_token: SecretStr | None = Field(
        default=None, description="token of the fallback provider"
    )
    replicate_model_version: str | None = Field(
        default=None, description="the fallback provider's model version"
    )

    # Object storage: S3 or R2 when the bucket is named, else files in DATA_DIR
    r2_endpoint_url: str | None = Field(
        default=None, description="S3 endpoint, such as https://<account>.r2.cloudflarestorage.com"
    )
    r2_access_key_id: SecretStr | None = Field(default=None, description="S3 access key id")
    r2_secret_access_key: SecretStr | None = Field(default=None, description="S3 secret key")
    r2_bucket_name: str | None = Field(
        default=None, description="bucket; unset keeps files in DATA_DIR"
    )
    r2_public_url: str | None = Field(
        default=None, description="public base URL of the bucket; set: image URLs are not signed"
    )
    r2_region: str = Field(default="auto", description="S3 region; R2's is auto")

    # Data
    database_url: SecretStr | None = Field(
        default=None, description="postgresql://…; unset runs PostgreSQL inside DATA_DIR"
    )
    data_dir: Path = Field(default=Path(".data"), description="folder of all local data")

    # The server
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on")
    public_base_url: str | None = Field(
        default=None, description="base of signed local URLs; unset: http://HOST:PORT"
    )
    lora_url_seconds: int = Field(
        default=900, ge=1, le=7 * 86400, description="seconds a LoRA's signed URL is valid"
    )
    image_url_seconds: int = Field(
        default=900, ge=1, le=7 * 86400, description="seconds an image's signed URL is valid"
    )
    max_upload_bytes: int = Field(
        default=2048 * _MIB, ge=1024, description="largest LoRA file taken, bytes"
    )
    max_request_bytes: int = Field(
        default=_MIB, ge=1024, description="largest request body but a LoRA file's, bytes"
    )
    max_uploads_at_once: int = Field(
        default=4, ge=1, le=1000, description="LoRA files that a key may send at the same time"
    )
    body_silence_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="seconds of silence after which a body is let go"
    )
    header_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="seconds in which a request's headers must come"
    )
    max_connections_per_address: int = Field(
        default=512, ge=1, description="connections open at a time from one address"
    )
    cors_origins: str = Field(
        default="", description="origins whose pages may call the API, between commas; empty: none"
    )
    openai_model_aliases: str = Field(
        default="sdxl,gpt-image-1,gpt-image-1-mini,gpt-image-1.5,dall-e-3,dall-e-2",
        description="names that /v1 takes for the base model, between commas",
    )
    webhook_proxy_url: SecretStr | None = Field(
        default=None, description="egress proxy of webhooks, http://…; unset: none"
    )
    webhook_allow_loopback: bool = Field(
        default=False, description="webhooks may go to this computer's own addresses, by http"
    )
    session_seconds: int = Field(
        default=7 * 86400, ge=60, le=90 * 86400, description="seconds that a page stays signed in"
    )
    sync_wait_seconds: float = Field(
        default=60.0, ge=0, le=600, description="seconds POST /content/generate waits by default"
    )
    shutdown_grace_seconds: float = Field(
        default=5.0, ge=0, description="seconds that requests, then jobs, get to end at a stop"
    )

    # Jobs
    content_deadline_seconds: float = Field(
        default=43200.0,
        ge=1,
        le=7 * 86400,
        description="seconds until a content fails that has not ended, waiting for its worker "
        "included, where the request names none",
    )
    job_concurrency: int = Field(
        default=2, ge=1, le=64, description="pictures asked of the worker at the same time"
    )
    same_lora_places: int = Field(
        default=4,
        ge=1,
        le=64,
        description="places of an owner's line within which a content for the LoRAs of its last "
        "one goes first, so none is overtaken by more than one less; 1: the order of asking",
    )
    job_max_attempts: int = Field(
        default=10, ge=1, description="interrupted attempts after which a content fails"
    )
    job_heartbeat_seconds: float = Field(
        default=2.0, gt=0, description="seconds between a job runner's signs of life"
    )
    job_stalled_seconds: float = Field(
        default=10.0, gt=0, description="seconds of silence after which its jobs are taken over"
    )
    model_refresh_seconds: float = Field(
        default=15.0,
        gt=0,
        description="seconds between looks at the worker's health; for an https endpoint a day "
        "unless set, since a look keeps a serverless GPU awake",
    )

    # Keeping and tidying up
    retention_days: int | None = Field(
        default=None, ge=1, le=36500, description="days that ended contents are kept; unset: always"
    )
    bin_days: int | None = Field(
        default=30, ge=1, le=36500, description="days that deleted pictures stay in the bin"
    )
    sweep_grace_seconds: float = Field(
        default=86400.0, ge=60, description="seconds before an object without a row is removed"
    )
    metrics_refresh_seconds: float = Field(
        default=15.0,
        gt=0,
        description="seconds between looks at the queue and the cost for /metrics",
    )

    admin_api_token: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="the operator's token for /api/v1/admin, at least 32 characters; unset: no "
        "such calls",
    )

    # Marks in pictures
    marking: Literal["c2pa", "off"] = Field(
        default="c2pa",
        description="c2pa: a signed manifest in every picture and thumbnail; off: none",
    )
    marking_certificate_file: Path | None = Field(
        default=None,
        description="PEM of the signer's certificate, then of those above it but the root; unset: "
        "a development root of this installation's own",
    )
    marking_key_file: Path | None = Field(
        default=None, description="PEM of that certificate's private key"
    )
    marking_sign_command: str | None = Field(
        default=None,
        description="for a key in a KMS: a program that gets bytes on stdin and writes the raw "
        "signature to stdout; instead of MARKING_KEY_FILE",
    )
    marking_trust_file: Path | None = Field(
        default=None,
        description="PEM of more roots whose signatures verification calls trusted",
    )

    watermark: Literal["off", "spread"] = Field(
        default="off",
        description="spread: 32 bits in the pixels of every picture, which outlive what removes a "
        "manifest; off: pixels stay as they were drawn",
    )

    prompt_blocklist_file: Path | None = Field(
        default=None,
        description="words and phrases that no prompt may have, one a line; unset: none",
    )
    generation_log_days: int | None = Field(
        default=None,
        ge=1,
        description="days that a record of each drawn content is kept, also of deleted ones; "
        "unset: no records",
    )
    generation_log_prompts: bool = Field(
        default=False, description="whether these records hold the prompts, too"
    )

    # Limits of a key, where it has none of its own
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="API calls a key may make in a minute; unset: any",
    )
    max_open_contents: int = Field(
        default=2000, ge=0, description="contents of an owner that may wait or run together; 0: any"
    )
    daily_budget_usd: float | None = Field(
        default=None, gt=0, description="USD an owner may spend in a day (UTC); unset: any"
    )
    daily_alert_usd: float | None = Field(
        default=None, gt=0, description="USD of all owners in a day (UTC) that raise an alert"
    )

    # Logs and traces
    tracing: Literal["off", "console", "otlp"] = Field(
        default="off",
        description="OpenTelemetry spans: off, console (stderr), or otlp (OTEL_EXPORTER_OTLP_*)",
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="json, or console for people"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="least severe level that is written"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any) -> Any:
        """Values as their sources display them: quoted, with blanks, a bucket in its address."""
        if not isinstance(values, dict):
            return values
        clean = {
            name: unwrapped(value) if isinstance(value, str) else value
            for name, value in values.items()
        }
        # What is blank is unset, as what is empty is.
        values = {name: value for name, value in clean.items() if value != ""}
        endpoint, bucket = values.get("r2_endpoint_url"), values.get("r2_bucket_name")
        if isinstance(endpoint, str) and isinstance(bucket, str):
            found = store(endpoint, bucket, str(values.get("r2_region", "auto")))
            values |= {
                "r2_endpoint_url": found.endpoint,
                "r2_bucket_name": found.bucket,
                "r2_region": found.region,
            }
        return values

    @field_validator("modal_endpoint_url", mode="after")
    @classmethod
    def _is_worker(cls, value: str | None) -> str | None:
        return value and clean_url(value, example="https://<worker>/generate-image")

    @field_validator("modal_control_url", mode="after")
    @classmethod
    def _is_control(cls, value: str | None) -> str | None:
        return value and clean_url(value, example="https://<team>--<app>-control.modal.run")

    @field_validator("public_base_url", mode="after")
    @classmethod
    def _is_base(cls, value: str | None) -> str | None:
        return value and clean_url(value, example="https://studio.example")

    @field_validator("r2_endpoint_url", mode="after")
    @classmethod
    def _is_store(cls, value: str | None) -> str | None:
        return value and clean_url(value, example="https://<account>.r2.cloudflarestorage.com")

    @field_validator("r2_public_url", mode="after")
    @classmethod
    def _is_public(cls, value: str | None) -> str | None:
        return value and public_url(value)

    @field_validator("data_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @model_validator(mode="after")
    def _whole_storage(self) -> Settings:
        if self.r2_bucket_name is None:
            if self.r2_endpoint_url and urlsplit(self.r2_endpoint_url).path:
                raise ValueError(
                    "R2_ENDPOINT_URL holds a path: write the bucket's name into R2_BUCKET_NAME"
                )
            return self
        missing = [
            name.upper()
            for name in ("r2_endpoint_url", "r2_access_key_id", "r2_secret_access_key")
            if getattr(self, name) is None
        ]
        if missing:
            raise ValueError(f"R2_BUCKET_NAME is set, so {', '.join(missing)} must be set too")
        return self

    @model_validator(mode="after")
    def _whole_provider(self) -> Settings:
        if self.lora_provider is LoraProvider.REPLICATE and not (
            self.replicate_api_token and self.replicate_model_version
        ):
            raise ValueError(
                "LORA_PROVIDER is replicate, so REPLICATE_API_TOKEN and REPLICATE_MODEL_VERSION "
                "must be set"
            )
        return self

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> Settings:
        if self.job_stalled_seconds < 2 * self.job_heartbeat_seconds:
            raise ValueError("JOB_STALLED_SECONDS must be at least twice JOB_HEARTBEAT_SECONDS")
        return self

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in _origins(value):
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin):
                raise ValueError(
                    "must be origins like https://studio.example, without a path, between commas"
                )
        return value

    @property
    def allowed_origins(self) -> list[str]:
        """`cors_origins` as a list."""
        return _origins(self.cors_origins)

    @property
    def model_aliases(self) -> list[str]:
        """`openai_model_aliases` as a list."""
        return [name.strip() for name in self.openai_model_aliases.split(",") if name.strip()]

    @property
    def base_url(self) -> str:
        """Where this server is reached; signed local URLs start with it."""
        if self.public_base_url:
            return self.public_base_url
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self.port}"

    @property
    def model_look_seconds(self) -> float:
        """Seconds between looks at the worker's health, with the rule for https endpoints."""
        said = "model_refresh_seconds" in self.model_fields_set
        if not said and (self.modal_endpoint_url or "").startswith("https://"):
            return 86400.0
        return self.model_refresh_seconds

    @property
    def worker_cannot_fetch(self) -> bool:
        """Whether LoRAs have loopback URLs although the worker is on another computer."""
        if self.modal_endpoint_url is None or self.r2_bucket_name or self.public_base_url:
            return False
        return not _is_loopback(urlsplit(self.modal_endpoint_url).hostname or "")

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer can reach the server."""
        return _is_loopback(self.host)


def _origins(text: str) -> list[str]:
    return [part.strip().rstrip("/") for part in text.split(",") if part.strip()]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, `overrides` first.

    Raises:
        pydantic.ValidationError: a setting is wrong; secrets are masked in its text.
    """
    return Settings(**overrides)
