"""`python -m app.services.foreign.lora_process`: looks at LoRA files, one after another.

Duty: a file's beginning, its size and the base model's signature → in JSON, what the file is or why
it is refused.
Must not know: the backend.
"""

from __future__ import annotations

import io
import json

from pydantic import BaseModel

from app.services.foreign.serving import serve
from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.header import inspect_lora_file

_MEMORY_BYTES = 4 * 2**30


class About(BaseModel):
    """What is said of a file beside its beginning."""

    size: int  # bytes of the whole file
    signature: BaseModelSignature | None  # of the base model, where it is known


def answer(_: int, about: bytes, beginning: bytes) -> bytes:
    """What the file is that begins so: `inspection`, or `message` and `details`."""
    said = About.model_validate_json(about)
    try:
        inspection = inspect_lora_file(io.BytesIO(beginning), said.size, said.signature)
    except LoraLoadFailed as refusal:
        return json.dumps({"message": refusal.message, "details": refusal.details}).encode()
    return json.dumps({"inspection": inspection.model_dump()}).encode()


if __name__ == "__main__":
    serve(answer, _MEMORY_BYTES, in_forks=False)
