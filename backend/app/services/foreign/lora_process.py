"""`python -m app.services.foreign.lora_process`: looks at files of strangers, one after another.

Duty: on stdin a line of JSON with three lengths, then as many bytes of a file's beginning and of
a base model's signature; on stdout a line of JSON with what the file is, or why it is refused.
A process of its own, so that whoever waits can end it, and its work holds up nobody else's.
Must not know: the backend.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from app.services.foreign.forking import bound_memory
from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.header import inspect_lora_file

_MEMORY_BYTES = 4 * 2**30
_SIGNATURE = TypeAdapter[BaseModelSignature | None](BaseModelSignature | None)


def answer(head: bytes, size: int, signature: BaseModelSignature | None) -> dict[str, Any]:
    """What the file is that begins with `head`: `inspection`, or `message` and `details`."""
    try:
        inspection = inspect_lora_file(io.BytesIO(head), size, signature)
    except LoraLoadFailed as refusal:
        return {"message": refusal.message, "details": refusal.details}
    return {"inspection": inspection.model_dump()}


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until `source` ends."""
    while line := source.readline():
        lengths = json.loads(line)
        head = source.read(lengths["head"])
        signature = _SIGNATURE.validate_json(source.read(lengths["signature"]))
        sink.write(json.dumps(answer(head, lengths["size"], signature)).encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    bound_memory(_MEMORY_BYTES)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
