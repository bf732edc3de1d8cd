"""The part of a request that says how its words are read, and the words of every step.

Duty: the fields, their bounds, and the one way from a prompt to weighted text.
Must not know: tokens, encoders, how a file is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator

from sdxl_contract import limits
from sdxl_contract.errors import InvalidPrompt, InvalidRequest
from sdxl_contract.fields import NullIsLeftOut, known_sha256
from sdxl_contract.prompts.marks import Marked
from sdxl_contract.prompts.weights import Fragment, parse_weights

# Of one prompt over all its steps.
TEXTS_MAX = 32
PIECES_MAX = 16
# Characters that are encoded for a request whose words change: its texts times the longest one,
# which all are filled up to. A piece fills a window of 75 tokens.
_CHARS_MAX = 24_000
_PIECE_CHARS = 75
# Whatever a model allows: marks are read anew for each step.
_TEXT_MAX_CHARS = 20_000


class PromptSyntax(StrEnum):
    """What brackets mean: `weights` knows `(words:1.3)` and nothing else, so that prose is prose;
    `a1111` knows all of A1111's marks."""

    WEIGHTS = "weights"
    A1111 = "a1111"


@dataclass(frozen=True)
class Words:
    """Weighted text: pieces of fragments. Each piece begins a window of its own."""

    pieces: tuple[tuple[Fragment, ...], ...]

    @property
    def text(self) -> str:
        """All of it without weights."""
        return " ".join("".join(one.text for one in piece) for piece in self.pieces)

    @property
    def size(self) -> int:
        """Characters, or what its pieces take at least."""
        return len(self.text) + _PIECE_CHARS * (len(self.pieces) - 1)


@dataclass(frozen=True)
class Timeline:
    """A prompt's words over the steps of a pass: `texts[at[step]]`; `field` is where it stands."""

    texts: tuple[Words, ...]
    at: tuple[int, ...]
    field: str


def read_words(
    text: str,
    syntax: PromptSyntax,
    steps: int,
    field: str = "prompt",
    *,
    after: int | None = None,
    passes: int = 1,
) -> Timeline:
    """The words of each of `steps`; as many texts as differ.

    Args:
        after: how many steps the first pass has, if these are a second one's.
        passes: how many there are, 1 or 2.

    Raises:
        InvalidPrompt: a mark cannot be read, or there is more of them than is allowed; the message
            names `field`.
    """
    if syntax is PromptSyntax.WEIGHTS:
        return Timeline((Words((tuple(parse_weights(text, field)),)),), (0,) * steps, field)
    if len(text) > _TEXT_MAX_CHARS:
        raise _too_much(field, f"has {len(text)} characters", _TEXT_MAX_CHARS)
    marked = Marked(text, field, passes)
    numbers: dict[Words, int] = {}
    at: list[int] = []
    for step in range(steps):
        words = Words(marked.at(step, steps, after))
        if len(words.pieces) > PIECES_MAX:
            raise _too_much(field, f"BREAK makes {len(words.pieces)} pieces", PIECES_MAX)
        at.append(numbers.setdefault(words, len(numbers)))
        if len(numbers) > TEXTS_MAX:
            raise _too_much(field, "over its steps it becomes more texts than that", TEXTS_MAX)
    return Timeline(tuple(numbers), tuple(at), field)


def check_size(sides: Sequence[Timeline]) -> None:
    """Bound what prompts that change over the steps take to encode.

    Raises:
        InvalidPrompt: it is too much; the message names the prompt that changes most.
    """
    texts = [words for side in sides for words in side.texts]
    longest = max(words.size for words in texts)
    if len(texts) <= len(sides) or len(texts) * longest <= _CHARS_MAX:
        return
    field = max(sides, key=lambda side: len(side.texts)).field
    raise InvalidPrompt(
        f"{field}: the prompts become {len(texts)} texts over the steps, the longest of {longest} "
        f"characters: these numbers' product may be at most {_CHARS_MAX}",
        details={"field": field, "reason": "mark", "maximum": _CHARS_MAX},
    )


def _too_much(field: str, what: str, most: int) -> InvalidPrompt:
    return InvalidPrompt(
        f"{field}: {what}: at most {most}",
        details={"field": field, "reason": "mark", "maximum": most},
    )


Token = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        # No blank, and no sign that means something in a prompt.
        pattern=r"^\w(?:[\w.+-]*\w)?$",
        description="a word of the prompt, whatever its case",
    ),
]


class EmbeddingRef(NullIsLeftOut):
    """A textual inversion: where to fetch it, and the word that stands for it in prompts."""

    url: str = Field(min_length=1, max_length=limits.URL_MAX_CHARS, repr=False)
    token: Token
    sha256: str | None = Field(default=None, description="what the file must be")

    _sha256 = field_validator("sha256")(known_sha256)


class FromWords(NullIsLeftOut):
    """A request's words, and how they are read."""

    prompt: str
    negative_prompt: str = ""
    prompt_syntax: PromptSyntax = Field(
        default=PromptSyntax.WEIGHTS,
        description="what brackets mean in both prompts: weights reads (words:1.3) alone; a1111 "
        "also (words), [words], BREAK, [from:to:0.5] and [one|other]",
    )
    clip_skip: int | None = Field(
        default=None,
        ge=1,
        le=limits.CLIP_SKIP_MAX,
        description="layers of both text encoders left out for the prompt, beyond the last one, "
        "which SDXL leaves out anyway",
    )
    embeddings: list[EmbeddingRef] = Field(
        default_factory=list,
        max_length=limits.MAX_EMBEDDINGS,
        description="textual inversions: safetensors files with clip_l and clip_g",
    )

    @field_validator("embeddings")
    @classmethod
    def _named_apart(cls, embeddings: list[EmbeddingRef]) -> list[EmbeddingRef]:
        if len({one.token.casefold() for one in embeddings}) < len(embeddings):
            raise ValueError("two of them have the same token")
        return embeddings

    def check_embeddings(self, texts: Sequence[str]) -> None:
        """Refuse an embedding that none of `texts` names: it would be left out in silence.

        Raises:
            InvalidRequest: there is one.
        """
        for number, one in enumerate(self.embeddings):
            if not any(names(one.token, text) for text in texts):
                field = f"embeddings[{number}].token"
                raise InvalidRequest(
                    f"{field}: {one.token!r} stands in no prompt", details={"field": field}
                )


def names(token: str, text: str) -> bool:
    """Whether `text` has `token` as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(token)}(?!\w)", text, re.IGNORECASE) is not None
