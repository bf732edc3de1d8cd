"""Answers that a worker should not give, and a good one to change."""

from __future__ import annotations

import base64
import hashlib

import httpx2

from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import GenerateRequest
from testkit.doubles.inference_double import draw_picture

SECRET = "https://bucket.example/x?X-Amz-Signature=abc"


def good(request: GenerateRequest, png: bytes | None = None) -> httpx2.Response:
    """A worker's answer; `png` instead of the right picture."""
    data = draw_picture(request, request.seed or 0) if png is None else png
    return httpx2.Response(
        200,
        json={
            "image_base64": base64.b64encode(data).decode(),
            "image_size": list(request.size(ModelLimits())),
            "image_sha256": hashlib.sha256(data).hexdigest(),
            "generation_time_seconds": 1.0,
            "model_info": {"base_model": "double", "lora_applied": False},
            "metadata": {"seed_used": request.seed, "actual_steps": 20, "actual_cfg": 5.5},
            "model_clean": True,
        },
    )


def crash(_: GenerateRequest) -> httpx2.Response:
    return httpx2.Response(500, text=f"Traceback {SECRET}")
