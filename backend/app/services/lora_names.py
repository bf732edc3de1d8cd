"""LoRAs by their names: each is one owner's only one, and callers may be a little inexact.

Must not know: HTTP, SQL.
"""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Callable, Collection, Mapping

from app.core.errors import NotFound
from sdxl_contract.errors import InvalidRequest

NAME_MAX_CHARS = 200
_NEAR = 3
_SUFFIX = ".safetensors"


def free_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, with the first number behind it that no other LoRA has, where it is taken."""
    names = set(taken)
    name, number = wanted, 1
    while name in names:
        number += 1
        behind = f" ({number})"
        name = wanted[: NAME_MAX_CHARS - len(behind)].rstrip() + behind
    return name


def plain_name(name: str) -> str:
    """`name` as most tools spell it: letters and digits of any alphabet, `_` for all the rest."""
    return re.sub(r"[\W_]+", "_", name.casefold().removesuffix(_SUFFIX)).strip("_")


def find_by_name(name: str, names: Mapping[uuid.UUID, str], field: str) -> uuid.UUID:
    """The LoRA that `name` means: spelt exactly, else but for case, else but for its signs.

    Raises:
        NotFound: there is none; the message holds the nearest names.
        InvalidRequest: several are meant.
    """
    spellings: tuple[Callable[[str], str], ...] = (
        str,
        lambda text: text.casefold().removesuffix(_SUFFIX),
        plain_name,
    )
    for spell in spellings:
        found = [lora_id for lora_id, other in names.items() if spell(other) == spell(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidRequest(
                f"{field}: {len(found)} LoRAs may be meant by {_shown(name)}: send the id of one",
                details={"field": field, "lora_model_ids": [str(one) for one in found[:20]]},
            )
    by_plain = {plain_name(other): other for other in names.values()}
    plain = plain_name(name[:NAME_MAX_CHARS])
    near = [by_plain[other] for other in difflib.get_close_matches(plain, by_plain, _NEAR)]
    hint = f" Near: {', '.join(_shown(other) for other in near)}." if near else ""
    raise NotFound(f"There is no LoRA with the name {_shown(name)}.{hint}", field=field)


def _shown(name: str) -> str:
    return f"“{name[:80]}”"
