"""The numbers that bound a request: the fixed ones, and those a base model states of itself.

Duty: one place for every limit, so that page, backend and worker refuse the same things.
Must not know: how a request is carried or a model is loaded.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

PROMPT_MAX_CHARS = 4000
STEPS_MIN, STEPS_MAX, STEPS_DEFAULT = 1, 100, 28
CFG_MIN, CFG_MAX, CFG_DEFAULT = 1.0, 20.0, 5.5
# The short form `lora_scale` keeps the range that callers of the first version know.
SHORT_SCALE_MIN, SHORT_SCALE_MAX, SHORT_SCALE_DEFAULT = 0.0, 1.0, 1.0
# Sliders are made to be pulled far, and in both directions.
SCALE_MIN, SCALE_MAX = -10.0, 10.0
MAX_LORAS = 8
MAX_IMAGES = 8
SEED_MAX = 2**32 - 1
TIMEOUT_DEFAULT_S, TIMEOUT_MAX_S = 60, 300
URL_MAX_CHARS = 8192
# Of an enlarged picture.
UPSCALED_MAX_PIXELS = 2**24
NAME_MAX_CHARS = 200
# SDXL's smaller text encoder has 12 layers; one at least must be left.
CLIP_SKIP_MAX = 11
# Of a textual inversion. 75 vectors are a window; in float32 they are 614,400 bytes.
MAX_EMBEDDINGS = 8
EMBEDDING_MAX_VECTORS = 75
EMBEDDING_MAX_BYTES = 2 * 2**20

# Of a picture that a request starts from. A phone's photo has 12 to 25 million pixels.
IMAGE_MAX_BYTES = 32 * 2**20
IMAGE_MAX_PIXELS = 25_000_000
IMAGE_MAX_SIDE = 8192
# px
BORDER_MAX, PADDING_MAX, BLUR_MAX = 2048, 512, 128

# A LoRA file is untrusted: these bound what a reader will look at (bytes, tensors, rank).
# The header's bound is the format's own: trainers write the tags of every caption into it.
LORA_HEADER_MAX_BYTES = 100_000_000
LORA_MAX_TENSORS = 20_000
# Several LoRAs joined into one have their ranks' sum. No memory depends on it but the file's own.
LORA_MAX_RANK = 4096
LORA_MAX_BYTES = 2 * 2**30


class UpscalerInfo(BaseModel):
    """An upscaler of the worker's, from a file that its operator provided."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="as requests name it")
    sha256: str = Field(description="of the file")
    architecture: str
    scale: int = Field(description="times the sides")
    bytes: int


class ControlKind(StrEnum):
    """What a control network is."""

    CONTROLNET = "controlnet"
    CONTROLNET_UNION = "controlnet_union"
    T2I_ADAPTER = "t2i_adapter"


class ControlInfo(BaseModel):
    """A control network of the worker's, from a folder that its operator provided."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="as requests name it")
    sha256: str = Field(description="of its weights' file")
    kind: ControlKind
    types: tuple[str, ...] = Field(
        default=(), description="of which a request names one; empty: it knows one only"
    )
    bytes: int


class AdapterKind(StrEnum):
    """What an adapter looks at of a reference picture."""

    BASE = "ip_adapter"
    PLUS = "ip_adapter_plus"


class AdapterInfo(BaseModel):
    """An adapter for reference pictures, from a file that the worker's operator provided."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="as requests name it")
    sha256: str
    kind: AdapterKind
    encoder_sha256: str = Field(description="of the image encoder that it looks through")
    bytes: int


class ModelLimits(BaseModel):
    """What the loaded base model can draw. Sides in pixels; shown in `GET /health`.

    The defaults are SDXL's.
    """

    model_config = ConfigDict(frozen=True)

    native_size: int = Field(default=1024, description="side in px it was trained for")
    min_side: int = 512
    max_side: int = 1536
    hires_max_side: int = Field(default=2048, description="of a second pass, or of an upscaling")
    multiple_of: int = 8
    prompt_max_chars: int = PROMPT_MAX_CHARS
    max_loras: int = MAX_LORAS
    max_images: int = MAX_IMAGES
    clip_skip_max: int = CLIP_SKIP_MAX
    lora_max_bytes: int = LORA_MAX_BYTES
    image_max_bytes: int = Field(default=IMAGE_MAX_BYTES, description="of a source or mask")
    image_max_pixels: int = IMAGE_MAX_PIXELS
    image_max_side: int = IMAGE_MAX_SIDE
    upscalers: tuple[UpscalerInfo, ...] = Field(
        default=(), description="of this worker, beside the built-in latent and lanczos"
    )
    controls: tuple[ControlInfo, ...] = Field(default=(), description="of this worker")
    adapters: tuple[AdapterInfo, ...] = Field(
        default=(), description="of this worker, for reference pictures"
    )

    def nearest_side(self, side: int) -> int:
        """The allowed side closest to `side` (px); of two equally close the larger."""
        rounded = (2 * side + self.multiple_of) // (2 * self.multiple_of) * self.multiple_of
        lowest = -(-self.min_side // self.multiple_of) * self.multiple_of
        highest = self.max_side // self.multiple_of * self.multiple_of
        return max(lowest, min(highest, rounded))

    def side_problem(self, field: str, side: int) -> str | None:
        """Why `side` (px) is not allowed, as a sentence naming `field`; None if it is."""
        if self.nearest_side(side) == side:
            return None
        return (
            f"{field} is {side}: it must be from {self.min_side} to {self.max_side} and a "
            f"multiple of {self.multiple_of}; the nearest allowed is {self.nearest_side(side)}"
        )


class BaseModelSignature(BaseModel):
    """What decides whether a LoRA fits the loaded base model. Part of `GET /health`.

    `modules` maps each module a LoRA may touch to its weight's shape, for example
    `unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q` → `[640, 640]`.
    Names start with `unet.`, `text_encoder.` or `text_encoder_2.` and are diffusers'.
    It is long, so `GET /health` leaves it empty unless asked with `?include=modules`.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="for example stable-diffusion-xl-base-1.0")
    family: str = Field(description="SDXL for every model of this project")
    cross_attention_dim: int = Field(description="input width of attn2.to_k and to_v")
    text_encoder_hidden_sizes: tuple[int, ...]
    layers_per_block: int = 2
    modules: dict[str, tuple[int, ...]] = Field(default_factory=dict)
