"""How a content's words are read, as the API takes it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.schemas.common import NUMBER, In
from sdxl_contract import limits
from sdxl_contract.prompts.words import PromptSyntax

ClipSkip = Annotated[int, Field(ge=1, le=limits.CLIP_SKIP_MAX), NUMBER]


class FromWordsIn(In):
    """What a content's request says of how its words are read."""

    prompt_syntax: PromptSyntax | None = Field(
        default=None,
        description="weights if unset: (words:1.3) alone; a1111 also reads (words), [words], "
        "BREAK, [from:to:0.5] and [one|other]",
    )
    clip_skip: ClipSkip | None = Field(
        default=None,
        description="layers of the text encoders left out for the prompt, beyond SDXL's own one",
    )
