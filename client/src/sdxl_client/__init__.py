"""Client of a modal-sdxl-lora server: the same calls in `Client` and `AsyncClient`."""

from sdxl_client.async_client import AsyncClient
from sdxl_client.client import Client
from sdxl_client.errors import ApiError, ConnectionLost, ContentFailed, SdxlError, Unauthorized
from sdxl_client.models import (
    Batch,
    Comparison,
    Content,
    Event,
    Image,
    Key,
    Lora,
    LoraUse,
    Page,
    Verification,
    Webhook,
)

__all__ = [
    "ApiError",
    "AsyncClient",
    "Batch",
    "Client",
    "Comparison",
    "ConnectionLost",
    "Content",
    "ContentFailed",
    "Event",
    "Image",
    "Key",
    "Lora",
    "LoraUse",
    "Page",
    "SdxlError",
    "Unauthorized",
    "Verification",
    "Webhook",
]
