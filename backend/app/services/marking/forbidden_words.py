"""The operator's list of what no prompt may ask for.

Duty: a file of words and phrases → whether a prompt has one. Whole words, whatever their case,
their accents, blanks between, and the signs that weigh words in a prompt.
Must not know: who asks, HTTP.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from app.services.marking.keys import UnusableKey
from sdxl_contract.errors import ContentRefused
from sdxl_contract.request import GenerateRequest

_MAX_TERMS, _MAX_CHARS = 20_000, 200
# What prompts weigh words with, and what shows nothing; each would hide a word from the list.
_WEIGHTS = re.compile(r"[()\[\]{}\\\u00ad\u200b-\u200f\u2060\ufeff]|:-?\d+(?:\.\d+)?")
_BLANKS = re.compile(r"[\s_]+")


class UnusableWords(UnusableKey):
    """PROMPT_BLOCKLIST_FILE cannot be used; the message says why."""


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    bare = "".join(sign for sign in folded if not unicodedata.combining(sign))
    return _BLANKS.sub(" ", _WEIGHTS.sub("", bare)).strip()


class ForbiddenWords:
    """Words and phrases; none by default."""

    def __init__(self, terms: Iterable[str] = ()) -> None:
        plain = sorted({_plain(term) for term in terms} - {""}, key=len, reverse=True)
        # One alternation of plain words: its time grows with the text alone.
        self._found = (
            re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, plain))})(?!\w)") if plain else None
        )

    @classmethod
    def from_file(cls, path: Path | None) -> ForbiddenWords:
        """A term a line; blank lines, and those that begin with `#`, are none.

        Raises:
            UnusableWords: the file cannot be read, or holds what is no list.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UnusableWords(f"PROMPT_BLOCKLIST_FILE cannot be read: {why}") from error
        terms = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if len(terms) > _MAX_TERMS or any(len(term) > _MAX_CHARS for term in terms):
            raise UnusableWords(
                f"PROMPT_BLOCKLIST_FILE: at most {_MAX_TERMS} lines of {_MAX_CHARS} characters"
            )
        return cls(terms)

    def check_request(self, request: GenerateRequest) -> None:
        """Refuse a request whose prompts have one, as they are written or in what their marks make
        of them at any step.

        Raises:
            InvalidPrompt: a mark cannot be read.
            ContentRefused: it has; the message names the word.
        """
        for field, text in request.words():
            self.check(text, field)
        for prompt, _ in request.timelines():
            for words in prompt.texts:
                self.check(words.text, prompt.field)

    def check(self, prompt: str, field: str = "prompt") -> None:
        """Refuse a prompt that has one of them.

        Raises:
            ContentRefused: it has; the message names the word.
        """
        found = self._found.search(_plain(prompt)) if self._found is not None else None
        if found is not None:
            raise ContentRefused(
                f"{field}: the operator of this server does not allow {found[0]!r} in prompts",
                details={"field": field, "reason": "prompt"},
            )
