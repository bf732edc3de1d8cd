"""How the worker is deployed: the settings of `worker/app.py`, without Modal.

Duty: names, units, defaults and refusals of the deployment's settings, what of them the container
is told, and the image's packages. Must not know: Modal, requests, how a picture is made.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sdxl_contract import prices
from sdxl_contract.prices import price_row, rest_usd_per_second
from sdxl_worker.deploying.volume import WEIGHTS_ROOT_DEFAULT, model_name
from sdxl_worker.settings import Dtype, Settings

PREFIX = "DEPLOY_"
# What the control asks for: it reads one small board and answers.
CONTROL_CORES = 0.125
CONTROL_MEMORY_MIB = 256
CONTROL_WINDOW_S = 60
# Worker settings that the deployment itself decides; what a shell holds of them is not passed on.
_DECIDED_HERE = {"base_model", "base_model_revision", "hf_home", "worker_host", "worker_port"} | {
    "lora_cache_dir"
}
# GPUs without fast bfloat16.
_HALF_PRECISION_GPUS = {"T4"}
# For which Modal may give a better one at the same price, unless they are pinned.
_MAY_BE_BETTER = {"A100", "H100"}
# `H100!` pins the kind, `B200+` also takes its successors.
_GPU = re.compile(r"[A-Z]+[A-Z0-9]*(-[A-Z0-9]+)*[!+]?")
# Only so that the worker's settings can be checked where the secret is not.
_ANY_TOKEN = "checked-where-the-secret-is-not-known"
_OBJECT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Routing(StrEnum):
    """Which container gets a request."""

    QUEUE = "queue"
    AFFINITY = "affinity"


class Snapshot(StrEnum):
    """What of a container is kept, for the next ones to begin with."""

    OFF = "off"
    IMPORTS = "imports"
    WEIGHTS = "weights"
    GPU = "gpu"


def _base_model() -> Any:
    return Settings.model_fields["base_model"].default


class Deployment(BaseSettings):
    """Settings by environment variables `DEPLOY_…`; read where `modal` is run, and baked into the
    image's environment so that the container reads the same. Empty means unset."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    base_model: str = Field(
        default_factory=_base_model,
        validation_alias=AliasChoices("BASE_MODEL"),
        description="what `download_weights` puts on the volume and the worker loads: hub name, "
        "`owner/repository/file.safetensors`, https URL of a .safetensors file, or a path on the "
        "weights volume",
    )
    base_model_revision: str | None = Field(
        default=None,
        validation_alias=AliasChoices("BASE_MODEL_REVISION"),
        description="branch, tag or commit of the hub name; the manifest keeps the commit",
    )
    app_name: str = Field(
        default="sdxl-lora-worker", pattern=_OBJECT_NAME, description="part of the endpoint's URL"
    )
    gpu: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("L40S",), description="comma-separated, the one wanted most first"
    )
    cpu: float = Field(default=2.0, gt=0, le=64, description="cores asked for")
    memory_mib: int = Field(default=16384, ge=1024, le=344064, description="MiB asked for")
    min_containers: int = Field(default=0, ge=0, le=1000, description="kept warm, and paid for")
    max_containers: int = Field(
        default=4, ge=1, le=1000, description="bound of what can be spent at once"
    )
    buffer_containers: int = Field(
        default=0, ge=0, le=1000, description="idle ones kept beside the busy ones under load"
    )
    scaledown_window_seconds: int = Field(
        default=120, ge=2, le=3600, description="idle time before a container ends; it is paid for"
    )
    target_inputs: int = Field(
        default=1, ge=1, le=1000, description="requests per container that Modal scales for"
    )
    max_inputs: int = Field(
        default=2,
        ge=2,
        le=1000,
        description="requests that a container takes: one draws, the next fetches its LoRA "
        "meanwhile; what more it takes waits there, though another container may be free",
    )
    routing: Routing = Field(
        default=Routing.QUEUE,
        description="`queue`: Modal's own queue before the containers, whichever is free draws; "
        "`affinity`: no queue at Modal, requests for the same LoRAs go to the same container and "
        "the backend's queue waits where all are full",
    )
    routing_region: str = Field(
        default="us-east",
        pattern=r"^[a-z0-9-]{2,32}$",
        description="where Modal's proxy stands, with `affinity`",
    )
    timeout_seconds: int = Field(
        default=360, ge=60, le=86400, description="of one request, waiting in line included"
    )
    startup_timeout_seconds: int = Field(
        default=900, ge=60, le=86400, description="of a container's start, checks included"
    )
    failed_start_seconds: float = Field(
        default=300.0,
        ge=0,
        le=3600,
        description="how long a container whose start failed answers 503 before another one is "
        "tried; each try is a paid start",
    )
    region: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated; empty: anywhere, which is cheapest"
    )
    snapshot: Snapshot = Field(
        default=Snapshot.WEIGHTS,
        description="what containers begin with: `off`: nothing; `imports`: Python's modules; "
        "`weights`: these too; `gpu`: all, the GPU's memory too, which Modal calls alpha",
    )
    proxy_auth: bool = Field(
        default=True, description="Modal asks for Modal-Key and Modal-Secret before the worker"
    )
    weights_volume: str = Field(default="sdxl-weights", pattern=_OBJECT_NAME)
    lora_volume: str = Field(default="sdxl-loras", pattern=_OBJECT_NAME)
    code_volume: str = Field(
        default="sdxl-compiled",
        pattern=_OBJECT_NAME,
        description="compiled code that containers share; whoever may write it runs code in them",
    )
    secret_name: str = Field(
        default="sdxl-worker",
        pattern=_OBJECT_NAME,
        description="Modal Secret that holds WORKER_API_TOKEN, and HUGGINGFACE_HUB_TOKEN if needed",
    )
    weights_mount: str = Field(default=WEIGHTS_ROOT_DEFAULT, pattern="^/.+")
    lora_mount: str = Field(default="/loras", pattern="^/.+")
    code_mount: str = Field(default="/compiled", pattern="^/.+")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Deployment:
        """The deployment that the environment states.

        Raises:
            ValueError: a value cannot work, or a `DEPLOY_…` name is no setting.
        """
        known = {
            str(field.validation_alias.choices[0])
            if isinstance(field.validation_alias, AliasChoices)
            else PREFIX + name.upper()
            for name, field in cls.model_fields.items()
        }
        for name in sorted(environment):
            if name.startswith(PREFIX) and name not in known:
                near = [full for full in sorted(known) if full.startswith(name)]
                near = near or difflib.get_close_matches(name, sorted(known), 1)
                hint = f": did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name} is not a setting of the deployment{hint}")
        if environment.get("VAE_MODEL"):
            raise ValueError(
                "VAE_MODEL does not work on Modal, where nothing is fetched at start: use a "
                "checkpoint whose vae is the wanted one, or bfloat16, which needs none"
            )
        try:
            deployment = cls()
        except ValidationError as error:
            raise ValueError(named_problems(error, PREFIX)) from error
        deployment._check_worker(environment)
        return deployment

    def _check_worker(self, environment: Mapping[str, str]) -> None:
        """Refuse here what the worker's own settings would refuse in a container with a GPU."""
        passed = {name: environment[name] for name in passed_on() if environment.get(name)}
        token = environment.get("WORKER_API_TOKEN") or _ANY_TOKEN
        try:
            self.worker_settings(passed | {"WORKER_API_TOKEN": token})
        except ValidationError as error:
            raise ValueError(named_problems(error)) from error

    @field_validator("gpu", "region", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("gpu")
    @classmethod
    def _gpus_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one GPU, such as L40S")
        names = tuple(name.upper() for name in value)
        for name in names:
            if not _GPU.fullmatch(name):
                raise ValueError(
                    f"{name!r} is not a GPU's name: write one such as L40S, A100-80GB or H100!"
                )
        return names

    @model_validator(mode="after")
    def _counts_agree(self) -> Deployment:
        for low, high in (
            ("min_containers", "max_containers"),
            ("target_inputs", "max_inputs"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{PREFIX}{low.upper()} is {getattr(self, low)}: it must be at most "
                    f"{PREFIX}{high.upper()}, which is {getattr(self, high)}"
                )
        return self

    @model_validator(mode="after")
    def _one_kind_for_a_snapshot(self) -> Deployment:
        one = self.gpu[0]
        if self.snapshot is Snapshot.GPU and (
            len(self.gpu) > 1 or one in _MAY_BE_BETTER or one.endswith("+")
        ):
            raise ValueError(
                f"{PREFIX}SNAPSHOT is gpu and {PREFIX}GPU is {','.join(self.gpu)}: name one kind, "
                "and pin what Modal may replace by a better one: H100!, A100-40GB"
            )
        return self

    @model_validator(mode="after")
    def _mounts_are_apart(self) -> Deployment:
        names = ("weights_mount", "lora_mount", "code_mount")
        for one, other in itertools.combinations(names, 2):
            first, second = (PurePosixPath(getattr(self, name)) for name in (one, other))
            if first == second or first in second.parents or second in first.parents:
                raise ValueError(
                    f"{PREFIX}{one.upper()} is {first} and {PREFIX}{other.upper()} is {second}: "
                    "one volume would hide the other; give each a folder of its own"
                )
        return self

    @property
    def keeps_memory(self) -> bool:
        """Whether containers begin with a snapshot."""
        return self.snapshot is not Snapshot.OFF

    @property
    def keeps_gpu(self) -> bool:
        """Whether it holds the GPU's memory, too."""
        return self.snapshot is Snapshot.GPU

    @property
    def board_name(self) -> str:
        """The Dict on which the containers tell of themselves, and the control reads."""
        return f"{self.app_name}-board"

    @property
    def region_factor(self) -> float:
        """What Modal multiplies its prices by for the chosen regions; the dearest one counts."""
        return max((prices.region_factor(region) for region in self.region), default=1.0)

    @property
    def model_folder(self) -> Path:
        """Where the container finds the model: a folder of the weights volume."""
        return Path(self.weights_mount) / model_name(self.base_model)

    @property
    def dtype(self) -> Dtype:
        """The precision that every GPU of the list computes fast."""
        old = any(name.rstrip("!+") in _HALF_PRECISION_GPUS for name in self.gpu)
        return Dtype.FLOAT16 if old else Dtype.BFLOAT16

    def worker_settings(self, environment: Mapping[str, str] = os.environ) -> Settings:
        """The worker's own settings inside the container: the environment's, with what the
        deployment decides on top. A missing WORKER_API_TOKEN is refused."""
        decided: dict[str, Any] = {
            "base_model": str(self.model_folder),
            "lora_cache_dir": Path(self.lora_mount),
            # As seen from here the whole internet: so settings insist on a token.
            "worker_host": "0.0.0.0",
            "hf_home": None,
        }
        # Without a GPU the container must fail, not draw on its CPU at a GPU's price; and what
        # `auto` means must not be asked on the CPU that loads the weights.
        if environment.get("DEVICE", "") in ("", "auto"):
            decided["device"] = "cuda"
        if environment.get("DTYPE", "") in ("", Dtype.AUTO):
            decided["dtype"] = self.dtype
        if not environment.get("GPU_NAME") and len(self.gpu) == 1:
            # Modal may give a better one at the same price: what was asked for is what is paid.
            decided["gpu_name"] = price_row(self.gpu[0])
        if not environment.get("USD_PER_SECOND") and len(self.gpu) == 1:
            decided["usd_per_second"] = container_usd_per_second(self, self.gpu[0])
        given = {
            name: environment[name.upper()]
            for name in Settings.model_fields
            if environment.get(name.upper())
        }
        return Settings(**(given | decided))

    def settings_without_secrets(self) -> Settings:
        """The worker's settings for what runs before a snapshot, in which no secret may stay."""
        hidden = {name.upper() for name in _secret_fields()}
        plain = {name: value for name, value in os.environ.items() if name not in hidden}
        return without_secrets(self.worker_settings(plain | {"WORKER_API_TOKEN": _ANY_TOKEN}))

    def container_environment(self, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What the image's environment holds: these settings, and the worker's that are set here.
        Never a secret."""
        revision = self.base_model_revision or ""
        told = {"BASE_MODEL": self.base_model, "BASE_MODEL_REVISION": revision}
        for name in sorted(set(type(self).model_fields) - {"base_model", "base_model_revision"}):
            value = getattr(self, name)
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            told[PREFIX + name.upper()] = text
        for name in sorted(passed_on()):
            if environment.get(name):
                told[name] = environment[name]
        return told


def without_secrets(settings: Settings) -> Settings:
    """`settings` as they may be kept, and compared with later ones."""
    return settings.model_copy(update=dict.fromkeys(_secret_fields()))


def _secret_fields() -> set[str]:
    fields = Settings.model_fields.items()
    return {name for name, field in fields if SecretStr in _types(field.annotation)}


def container_usd_per_second(deployment: Deployment, gpu: str) -> float | None:
    """USD per second that Modal bills for one container with `gpu`: GPU, processors and memory,
    times the region's factor; None if the table has no price for the GPU."""
    row = price_row(gpu)
    if row is None:
        return None
    rest = rest_usd_per_second(deployment.cpu, deployment.memory_mib)
    return (prices.USD_PER_SECOND[row] + rest) * deployment.region_factor


def named_problems(error: ValidationError, prefix: str = "") -> str:
    """One line per problem, each with the name of the environment variable that it is about."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        name = field if field.isupper() or not field else prefix + field.upper()
        lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}".lstrip(": "))
    return "\n".join(lines)


def passed_on() -> set[str]:
    """Environment variables of the worker that a deployment passes on: no secrets, and none that
    it decides itself."""
    return {
        name.upper()
        for name, field in Settings.model_fields.items()
        if name not in _DECIDED_HERE | {"vae_model"} | _secret_fields()
    }


def _types(annotation: Any) -> set[Any]:
    return {annotation, *getattr(annotation, "__args__", ())}
