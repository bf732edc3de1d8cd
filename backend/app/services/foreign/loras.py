"""Looks at LoRA files of strangers in processes of their own.

Duty: a LoRA file's beginning → what it is. A file that takes too long, or more memory than any
LoRA needs, is refused.
Must not know: HTTP, storage.
"""

from __future__ import annotations

import json
import sys
from typing import IO

from app.core.pools import Duty, in_pool
from app.services.foreign.lora_process import About
from app.services.foreign.processes import ForeignProcesses, NoAnswer
from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import LORA_HEADER_MAX_BYTES, BaseModelSignature
from sdxl_contract.lora.header import LoraInspection

_AFTER_HEADER_BYTES = 512  # by which a file that is something else is named
_READERS = ForeignProcesses(
    (sys.executable, "-m", "app.services.foreign.lora_process"), deadline_s=20.0
)


async def inspect_foreign(
    file: IO[bytes],
    size: int,
    signature: BaseModelSignature | None,
    readers: ForeignProcesses = _READERS,
) -> LoraInspection:
    """What the LoRA in `file` (`size` bytes) is, checked against `signature`, if one is known.

    Raises:
        LoraLoadFailed: it is no LoRA that fits, or finding that out takes too much.
    """
    return await in_pool(Duty.FOREIGN, _inspect, file, size, signature, readers)


def _inspect(
    file: IO[bytes], size: int, signature: BaseModelSignature | None, readers: ForeignProcesses
) -> LoraInspection:
    about = About(size=size, signature=signature).model_dump_json().encode()
    try:
        found = json.loads(readers.ask(about, _beginning(file)))
    except NoAnswer as error:
        why, reason = (
            (f"took more than {readers.deadline_s:g} s to look at", "too_slow")
            if error.is_late
            else ("cannot be looked at: it takes more memory than a LoRA may", "too_large")
        )
        raise LoraLoadFailed(f"The file {why}.", details={"reason": reason}) from error
    if "inspection" in found:
        return LoraInspection.model_validate(found["inspection"])
    raise LoraLoadFailed(found["message"], details=found["details"])


def _beginning(file: IO[bytes]) -> bytes:
    """The header's length, as much of the header as is read, and a little more."""
    file.seek(0)
    length = file.read(8)
    size = min(int.from_bytes(length, "little"), LORA_HEADER_MAX_BYTES)
    return length + file.read(size + _AFTER_HEADER_BYTES)
