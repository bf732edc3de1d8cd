"""How a LoRA that was made for few steps wants to be drawn with, where it says what it is.

Duty: one table from what such files call themselves to sampler, steps and CFG. A hint for people,
never applied by itself. Must not know: files, storage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from sdxl_contract.request import Scheduler

_TEXT_MAX_CHARS = 1000


class FewSteps(NamedTuple):
    """Sampler, steps and CFG that a LoRA's makers name for it."""

    scheduler: Scheduler
    steps: int
    cfg: float


# Each family by the word that its files have in title, name or comment; the first that is found.
_FAMILIES: tuple[tuple[re.Pattern[str], FewSteps], ...] = tuple(
    (re.compile(rf"(?<![a-z0-9])(?:{word})(?![a-z])"), hint)
    for word, hint in (
        ("dmd-?2|dmd", FewSteps(Scheduler.LCM, 4, 1.0)),
        # A style may be called so too: only with what the files have beside it.
        (
            r"sdxl[ _-]?lightning|lightning[ _-]?(?:[0-9]+[ _-]?steps?|xl|lora)",
            FewSteps(Scheduler.EULER_TRAILING, 4, 1.0),
        ),
        ("hyper[ _-]?sd(?:xl)?", FewSteps(Scheduler.DDIM_TRAILING, 8, 1.0)),
        ("tcd", FewSteps(Scheduler.TCD, 4, 1.0)),
        ("lcm", FewSteps(Scheduler.LCM, 4, 1.0)),
    )
)
_STEPS = re.compile(r"(?<![0-9])([1-9][0-9]?)[ _-]?steps?(?![a-z])")
_STEPS_MAX = 16  # more is not few


def few_steps(texts: Iterable[str]) -> FewSteps | None:
    """The hint for a LoRA that calls itself so in one of `texts`; None where none says it."""
    known = [text[:_TEXT_MAX_CHARS].lower() for text in texts]
    for word, hint in _FAMILIES:
        if any(word.search(text) for text in known):
            told = [int(found[1]) for text in known if (found := _STEPS.search(text))]
            steps = next((number for number in told if number <= _STEPS_MAX), hint.steps)
            return hint._replace(steps=steps)
    return None
