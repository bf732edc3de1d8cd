"""How a content's words are read, as the API takes it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.schemas.common import NUMBER, In, Storable
from sdxl_contract import limits
from sdxl_contract.prompts.words import PromptSyntax, Token

STYLE_NAME_MAX = 100
STYLES_MAX = 20  # of one request
_LINES_MAX = 2000
StyleName = Annotated[Storable, Field(min_length=1, max_length=STYLE_NAME_MAX)]
Words = Annotated[Storable, Field(max_length=limits.PROMPT_MAX_CHARS)]
Line = Annotated[Storable, Field(max_length=1000)]
ClipSkip = Annotated[int, Field(ge=1, le=limits.CLIP_SKIP_MAX), NUMBER]


class EmbeddingUse(In):
    """A textual inversion that was uploaded (`POST /embeddings`), by its id or by its name."""

    embedding_id: uuid.UUID | None = None
    name: Annotated[Storable, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="in place of embedding_id; capital letters count as small"
    )
    word: Token | None = Field(
        default=None, description="the prompts' word that stands for it; its name if unset"
    )

    @model_validator(mode="after")
    def _named_once(self) -> EmbeddingUse:
        if (self.embedding_id is None) == (self.name is None):
            raise PydanticCustomError("one_of", "send either embedding_id or name")
        return self


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
    styles: list[StyleName] = Field(
        default_factory=list,
        max_length=STYLES_MAX,
        description="names of `GET /words/styles`; their words are put around the prompts",
    )
    embeddings: list[EmbeddingUse] = Field(
        default_factory=list,
        max_length=limits.MAX_EMBEDDINGS,
        description="textual inversions whose words stand in the prompts; left out with "
        "prompt_syntax a1111: all whose names do",
    )


class StyleIn(In):
    """What is said around a prompt."""

    prompt: Words = Field(
        default="", description="the prompt stands where `{prompt}` is; without it, before this"
    )
    negative_prompt: Words = Field(default="", description="likewise, around the negative prompt")


class StyleOut(BaseModel):
    """A style."""

    name: str
    prompt: str
    negative_prompt: str


class WildcardIn(In):
    """Lines of which the seed draws one for each `__name__` in a prompt."""

    lines: list[Line] = Field(min_length=1, max_length=_LINES_MAX)


class WildcardOut(BaseModel):
    """A wildcard."""

    name: str
    lines: list[str]


class EmbeddingOut(BaseModel):
    """A textual inversion of the library."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str = Field(description="the word that stands for it in prompts")
    sha256: str
    size_bytes: int
    vectors: int = Field(description="how many places of a prompt's 75 the word takes")
    created_at: datetime
