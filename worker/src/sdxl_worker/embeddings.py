"""Words that a textual inversion taught: vectors in place of tokens, for one request.

Duty: find such words in a text, and put their vectors in while the text is encoded. No tokenizer
and no weight is touched: ids that the request does not use stand for the vectors, and a hook on the
embedding's output, which is gone when the encoding is, puts them in.
Must not know: where the vectors come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embedding:
    """A word and its vectors.

    Attributes:
        token: the word, whatever its case.
        vectors: (n, width) for each of both text encoders.
        sha256: of the file.
    """

    token: str
    vectors: tuple[Tensor, Tensor]
    sha256: str


class Vocabulary:
    """The words of several embeddings in texts. A vector is written as a negative number until all
    texts are read, when it is known which ids they leave free."""

    def __init__(self, embeddings: Sequence[Embedding]) -> None:
        self._embeddings = embeddings
        names = sorted((re.escape(one.token) for one in embeddings), key=len, reverse=True)
        self._found = re.compile(rf"(?<!\w)({'|'.join(names)})(?!\w)", re.IGNORECASE)
        self._numbers: dict[str, range] = {}
        first = 1
        for one in embeddings:
            count = len(one.vectors[0])
            self._numbers[one.token.casefold()] = range(-first, -first - count, -1)
            first += count
        self._count = first - 1

    def parts(self, text: str) -> Iterator[str | range]:
        """Text, and the numbers of an embedding's vectors, in order."""
        if not self._embeddings:
            yield text
            return
        for number, part in enumerate(self._found.split(text)):
            if number % 2:
                yield self._numbers[part.casefold()]
            elif part:
                yield part

    def ids(self, used: set[int], tokenizer: Any) -> dict[int, int]:
        """Number → id, the lowest that is not used: below the end's, by whose height SDXL's second
        encoder finds the end of a text."""
        taken = used | set(tokenizer.all_special_ids)
        free = (one for one in range(len(tokenizer)) if one not in taken)
        return dict(zip(range(-1, -1 - self._count, -1), free, strict=False))

    @contextmanager
    def put_in(self, encoders: Sequence[tuple[Any, dict[int, int]]]) -> Iterator[None]:
        """The vectors in place of their ids in each (encoder, number → id) while this lasts."""
        with ExitStack() as stack:
            for which, (encoder, ids) in enumerate(encoders):
                if not ids:
                    continue
                vectors = torch.cat([one.vectors[which] for one in self._embeddings])
                layer = encoder.get_input_embeddings()
                hook = _replacing(list(ids.values()), vectors.to(layer.weight))
                stack.callback(layer.register_forward_hook(hook).remove)
            yield


def _replacing(ids: list[int], vectors: Tensor) -> Any:
    """A forward hook of an embedding: id → its vector, all others as they are."""

    def hook(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        replaced = output.clone()
        for one, vector in zip(ids, vectors, strict=True):
            replaced[arguments[0] == one] = vector
        return replaced

    return hook
