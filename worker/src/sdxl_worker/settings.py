"""The worker's settings, read once from the environment.

Duty: names, units, defaults and the refusal of values that cannot work.
Must not know: what the settings are used for.
"""

from __future__ import annotations

import ipaddress
import os
import re
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_HOST = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:]+")


_TOKEN_MIN_CHARS = 16


class Dtype(StrEnum):
    """Precision of the weights; `auto` is bf16 or fp16 on a GPU and fp32 on a CPU."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class DrawSpeed(StrEnum):
    """How the UNet is called; what each promises is in docs/worker-speed.md."""

    EXACT = "exact"
    COMPILED = "compiled"
    FP8 = "fp8"


class SafetyAction(StrEnum):
    """What becomes of a picture that the safety checker flags."""

    REPORT = "report"
    REFUSE = "refuse"


class Settings(BaseSettings):
    """Settings by environment variables of the same names in capitals. Empty means unset."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    base_model: str = Field(
        default="stabilityai/stable-diffusion-xl-base-1.0",
        description="folder of a diffusers SDXL pipeline, hub name, or one .safetensors file",
    )
    base_model_revision: str | None = Field(default=None, description="commit of the hub name")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    dtype: Dtype = Dtype.AUTO
    vae_model: str | None = Field(
        default=None,
        description="VAE to use instead of the model's own; on a GPU with float16 and SDXL's own "
        "VAE: madebyollin/sdxl-vae-fp16-fix",
    )
    hf_home: Path | None = Field(default=None, description="where hub files are kept")
    huggingface_hub_token: SecretStr | None = None

    worker_host: str = "127.0.0.1"
    worker_port: int = Field(default=8001, ge=0, le=65535)
    worker_api_token: SecretStr | None = Field(
        default=None, description="bearer token that every call but GET /health must carry"
    )
    shutdown_grace_seconds: int = Field(default=30, ge=0)

    lora_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated hosts (or .suffixes); empty: any public host"
    )
    lora_allow_loopback: bool = Field(
        default=False, description="development only: also http and https on loopback"
    )
    lora_max_bytes: int = Field(default=2 * 2**30, gt=0)
    lora_download_timeout_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    lora_min_bytes_per_second: int = Field(
        default=64 * 1024, ge=0, description="slower downloads are given up after 5 s"
    )
    lora_bytes_in_flight: int = Field(
        default=4 * 2**30,
        gt=0,
        description="of LoRA files on their way into the model, all requests together; a request "
        "that finds too little left is OVERLOADED",
    )
    lora_cache_bytes: int = Field(default=4 * 2**30, ge=0, description="parsed LoRAs in memory")
    lora_cache_dir: Path | None = Field(
        default=None, description="second tier on disk; unset: none"
    )
    lora_cache_dir_bytes: int = Field(default=20 * 2**30, ge=0)

    image_max_bytes: int = Field(
        default=32 * 2**20, gt=0, description="of a source or mask that a request draws from"
    )

    upscalers_dir: Path | None = Field(
        default=None, description="folder of upscalers (safetensors), named by file; unset: none"
    )
    controls_dir: Path | None = Field(
        default=None,
        description="folder of control networks, each a folder of diffusers; unset: none",
    )
    adapters_dir: Path | None = Field(
        default=None,
        description="folder of IP-Adapters (safetensors), named by file, with their image_encoder; "
        "unset: none",
    )
    auxiliary_bytes: int = Field(
        default=6 * 2**30,
        gt=0,
        description="of upscalers, control networks and adapters in memory, on a GPU its own; "
        "the least recently used is let go",
    )

    queue_max: int = Field(default=16, ge=1, description="requests waiting before OVERLOADED")
    same_lora_run_max: int = Field(
        default=1,
        ge=1,
        le=64,
        description="requests in a row that may share one applied LoRA set, waiting ones with it "
        "being moved forward; each waiting one is overtaken at most this many times less one. "
        "1: every request finds and leaves the model pristine",
    )
    result_keep_seconds: float = Field(
        default=600.0,
        ge=0,
        allow_inf_nan=False,
        description="how long a result answers a repeated request_id",
    )
    result_keep_bytes: int = Field(default=256 * 2**20, ge=0)
    channels_last: bool | None = Field(
        default=None,
        description="memory layout of UNet and VAE; unset: no, which is also plain diffusers' "
        "and was measured to be faster on an H200",
    )
    draw_speed: DrawSpeed = Field(
        default=DrawSpeed.EXACT,
        description="exact: plain diffusers' bytes, launched from CUDA graphs. compiled: one "
        "picture of the native size is drawn by a compiled UNet, equal to itself at every start, "
        "and all else as by exact. fp8: as compiled, with the UNet's large layers in 8 bit, which "
        "shows; on a GPU that can, else as compiled",
    )
    compile_cache_dir: Path | None = Field(
        default=None,
        description="where compiled code is kept from one start to the next; unset: torch's own "
        "folder",
    )
    graph_bytes: int | None = Field(
        default=None,
        ge=0,
        description="of CUDA graphs of other shapes than the native size; 0: no graphs at all; "
        "unset: by the GPU's memory",
    )
    quick_kernels: bool = Field(
        default=True,
        description="on a GPU, compute what torch is slow at by kernels of our own, where they "
        "give its very bits",
    )
    images_per_batch: int = Field(
        default=1,
        ge=1,
        le=8,
        description="pictures of one request denoised together; above 1 a picture is equal up to "
        "rounding, not bit for bit, to the same one drawn alone",
    )
    map_weights: bool | None = Field(
        default=None,
        description="use the weight files' own pages as memory instead of reading them into new: "
        "starts sooner and needs less memory, but the files must not be written while the worker "
        "runs; unset: on a CPU only",
    )
    safety_model: Path | None = Field(
        default=None,
        description="folder of an image classifier (safetensors) that looks at every picture, on "
        "the CPU; unset: none",
    )
    safety_labels: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("nsfw",), description="comma-separated labels of it that are not allowed"
    )
    safety_threshold: float = Field(
        default=0.5,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="a picture is flagged where these labels' shares add up to this",
    )
    safety_action: SafetyAction = Field(
        default=SafetyAction.REFUSE,
        description="refuse: a flagged picture fails its request; report: it is only said",
    )
    warmup: bool = Field(default=True, description="draw one small picture before saying ready")
    gpu_name: str | None = Field(default=None, description="row of the price table, such as L40S")
    usd_per_second: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="price used instead of the table's"
    )
    log_format: str = Field(default="json", pattern="^(json|console)$")

    @field_validator("lora_allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @field_validator("safety_labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        if isinstance(value, str):
            labels = tuple(part.strip() for part in value.split(",") if part.strip())
            if not labels:
                raise ValueError("names no label: which of the classifier's are not allowed?")
            return labels
        return value

    @field_validator("lora_allowed_hosts")
    @classmethod
    def _hosts_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"{host[:80]!r} is no host: one such as bucket.example.com or .example.com, "
                    "without scheme, port and path"
                )
        return value

    @field_validator("worker_api_token")
    @classmethod
    def _token_can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        # What a header cannot carry as it is would lock everyone out, or let blanks in.
        if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("must be visible ASCII characters without blanks")
        if value is not None and len(value.get_secret_value()) < _TOKEN_MIN_CHARS:
            raise ValueError(
                f"must have at least {_TOKEN_MIN_CHARS} characters, so that it cannot be guessed: "
                "such as what `openssl rand -hex 32` prints"
            )
        return value

    @model_validator(mode="after")
    def _old_names(self) -> Settings:
        if os.environ.get("COMPILE_UNET"):
            raise ValueError(
                "COMPILE_UNET is no setting any more: remove it, and set DRAW_SPEED=compiled "
                "where it was true"
            )
        return self

    @model_validator(mode="after")
    def _no_open_door(self) -> Settings:
        if self.worker_api_token is None and not self.is_loopback:
            raise ValueError(
                f"WORKER_API_TOKEN is unset and WORKER_HOST is {self.worker_host}: anyone could "
                "use the worker. Set a token, or bind to 127.0.0.1"
            )
        return self

    def maps_weights(self, *, on_cpu: bool) -> bool:
        """Whether weight files are mapped instead of read."""
        return on_cpu if self.map_weights is None else self.map_weights

    @cached_property
    def is_loopback(self) -> bool:
        """Whether the worker listens on this computer only."""
        if self.worker_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.worker_host).is_loopback
        except ValueError:
            return False
