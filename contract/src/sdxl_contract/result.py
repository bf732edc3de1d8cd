"""The worker's answers: a picture's result, the progress before it, and `GET /health`.

Duty: hold the answers' fields with their units. An older client reads the given part and ignores
the rest; a newer one may meet fields it does not know, so nothing here forbids extra fields.
Must not know: how a picture is made or stored.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdxl_contract.errors import ErrorBody
from sdxl_contract.limits import BaseModelSignature, ModelLimits


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class ModelInfo(_Answer):
    """Given part of the result: which model, and the first LoRA."""

    base_model: str
    lora_applied: bool
    lora_version: str | None = Field(default=None, description="sha256 of the first LoRA")
    lora_scale: float | None = None
    weights: str | None = Field(
        default=None,
        description="checksum of all weights in the precision that drew: the same model wherever "
        "it is the same, whatever its name",
    )


class Metadata(_Answer):
    """Given part of the result: what was really used."""

    seed_used: int
    actual_steps: int
    actual_cfg: float
    scheduler: str | None = None
    seeds: list[int] = Field(default_factory=list, description="one per image")
    first_size: tuple[int, int] | None = Field(
        default=None, description="of the first pass, where a second one drew the image"
    )


class LoraReport(_Answer):
    """What became of one LoRA of the request."""

    sha256: str
    name: str | None = None
    scale: float
    format: str
    algorithm: str = "lora"
    rank: int
    modules_matched: int
    modules_unmatched: list[str] = Field(
        default_factory=list, description="stray keys that name no layer, skipped"
    )


class Timings(_Answer):
    """Seconds per phase of one request."""

    queue: float = 0.0
    download: float = 0.0
    parse: float = 0.0
    fetch_images: float = 0.0
    apply: float = 0.0
    text_encode: float = 0.0
    encode_image: float = 0.0
    denoise: float = 0.0
    upscale: float = 0.0
    decode: float = 0.0
    restore: float = 0.0
    image_encode: float = 0.0
    upload: float = 0.0
    safety: float = 0.0

    def total(self) -> float:
        """Seconds of all phases together."""
        return float(sum(self.model_dump().values()))


class Cost(_Answer):
    """Price of one request: `seconds` of `gpu` at `usd_per_second`."""

    usd: float
    gpu: str
    seconds: float
    usd_per_second: float


class GeneratedImage(_Answer):
    """One of several images of a request."""

    image_base64: str | None = Field(default=None, repr=False)
    image_sha256: str
    seed: int


class ImageSafety(_Answer):
    """What the checker found in one picture: `score` from 0 to 1, flagged from the threshold on."""

    score: float
    flagged: bool


class SafetyReport(_Answer):
    """What the operator's safety checker found, picture by picture."""

    model: str
    threshold: float
    images: list[ImageSafety]


class DrawingReport(_Answer):
    """How the denoising steps were made; the pictures do not depend on it, but for `speed`.

    `speed`: what drew: `exact`, `compiled` or `fp8`, several joined by `+`. Steps are calls of the
    UNet: replayed from a recording, made while recording it, or launched one kernel at a time, and
    why. `speeds_unavailable`: speeds that the worker's setting asks for and that cannot draw there,
    and why.
    """

    speed: str
    steps_replayed: int
    steps_captured: int
    steps_eager: int
    eager_because: dict[str, int] = Field(default_factory=dict)
    speeds_unavailable: dict[str, str] = Field(default_factory=dict)


class GenerateResult(_Answer):
    """The 200 answer of `POST /generate-image`.

    `image_base64` is the first image, left out where `output_url` took it. With `num_images` > 1
    `images` holds all of them.
    """

    image_base64: str | None = Field(default=None, repr=False)
    image_size: tuple[int, int]
    generation_time_seconds: float
    model_info: ModelInfo
    metadata: Metadata

    loras: list[LoraReport] = Field(default_factory=list)
    timings: Timings = Field(default_factory=Timings)
    cost: Cost | None = None
    image_sha256: str | None = None
    output_format: str = "png"
    images: list[GeneratedImage] = Field(default_factory=list)
    model_clean: bool | None = Field(
        default=None,
        description="true: after this request every weight a LoRA had touched was compared with "
        "its pristine copy and found equal, bit for bit, and the structure is clean",
    )
    structure_clean: bool | None = Field(
        default=None,
        description="true: after this request every attribute of the model was the one it had at "
        "start: no processor, hook, setting or word was left behind",
    )
    request_id: str | None = None
    drawing: DrawingReport | None = None
    safety: SafetyReport | None = Field(
        default=None, description="what the safety checker found; left out where there is none"
    )


class Phase(StrEnum):
    """Where a request is; the same names as in `Timings`."""

    QUEUE = "queue"
    DOWNLOAD = "download"
    PARSE = "parse"
    FETCH_IMAGES = "fetch_images"
    APPLY = "apply"
    TEXT_ENCODE = "text_encode"
    ENCODE_IMAGE = "encode_image"
    DENOISE = "denoise"
    UPSCALE = "upscale"
    DECODE = "decode"
    RESTORE = "restore"
    IMAGE_ENCODE = "image_encode"
    UPLOAD = "upload"
    SAFETY = "safety"


class QueuedEvent(_Answer):
    """SSE `queued`: `position` 0 is next."""

    type: Literal["queued"] = "queued"
    position: int


class ProgressEvent(_Answer):
    """SSE `progress`: `step` of `steps` denoising steps done; `eta_seconds` left, if known."""

    type: Literal["progress"] = "progress"
    phase: Phase
    step: int = 0
    steps: int = 0
    eta_seconds: float | None = None


class PreviewEvent(_Answer):
    """SSE `preview`: a small picture of the latents, base64 of a JPEG."""

    type: Literal["preview"] = "preview"
    image_base64: str = Field(repr=False)
    step: int


class ResultEvent(_Answer):
    """SSE `result`: the last event of a request that succeeded."""

    type: Literal["result"] = "result"
    result: GenerateResult


class ErrorEvent(_Answer):
    """SSE `error`: the last event of a request that failed; `status` is the HTTP status."""

    type: Literal["error"] = "error"
    status: int
    error: ErrorBody


WorkerEvent = Annotated[
    QueuedEvent | ProgressEvent | PreviewEvent | ResultEvent | ErrorEvent,
    Field(discriminator="type"),
]


class HealthStatus(StrEnum):
    """Whether a worker can take requests."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class CachedLora(_Answer):
    """A LoRA whose parsed factors are in the worker's memory."""

    sha256: str
    bytes: int


class StartReport(_Answer):
    """How a worker that is deployed came to be ready."""

    way: str = Field(
        description="`volume`: all read anew; else what the snapshot that it began from held: "
        "`imports`, `weights` or `gpu`"
    )
    seconds: dict[str, float] = Field(
        default_factory=dict, description="what it took after the snapshot, part by part"
    )
    fell_back: str | None = Field(
        default=None, description="why it did not begin in the way that was asked for"
    )


class Health(_Answer):
    """The answer of `GET /health`: 200 when ready, else 503."""

    status: HealthStatus
    base_model: str | None = None
    weights: str | None = Field(
        default=None,
        description="as results have it in model_info; not there while a CPU's first moments go "
        "into computing it",
    )
    device: str | None = None
    gpu: str | None = Field(default=None, description="name in the price table, or cpu")
    dtype: str | None = None
    draw_speed: str | None = Field(
        default=None, description="what draws single pictures of the native size"
    )
    speeds_unavailable: dict[str, str] = Field(
        default_factory=dict,
        description="speeds that the setting asks for and that cannot draw here, and why",
    )
    limits: ModelLimits = Field(default_factory=ModelLimits)
    schedulers: list[str] = Field(
        default_factory=list, description="samplers that a request may name; empty: not told"
    )
    signature: BaseModelSignature | None = None
    cached_loras: list[CachedLora] = Field(default_factory=list)
    queue_length: int = 0
    start: StartReport | None = Field(default=None, description="not told by every deployment")
    version: str | None = None
    error: ErrorBody | None = None
