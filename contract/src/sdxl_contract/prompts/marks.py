r"""A1111's marks in prompts: from text to the fragments of each step.

Duty: a prompt in A1111's spelling → for every step its pieces of weighted text.
Must not know: tokens, encoders, samplers.

The rules, all of them:
- `(words)` counts 1.1-fold, `[words]` 1/1.1-fold, `(words:1.3)` 1.3-fold. Nested ones multiply; the
  product is from 0 to 3. A bracket that is never closed reaches to the end of the text.
- `BREAK`, in capitals, ends a window of 75 tokens.
- `[a:b:0.5]` is a in the first half of the steps and b after; `[a:b:10]` is a in the first 10.
  `[b:0.5]` and `[:b:0.5]` add b, `[a::0.5]` takes a away. A number with a full stop is a share of
  the steps, one without is a count. Steps are those that are drawn: over a source fewer.
  Where a second pass follows, 1.0 to 2.0 is its share, and counts go on from the first pass's.
- `[a|b|c]` is a in the first step, b in the second, c in the third, a in the fourth, and so on.
- Everything nests. `\(`, `\)`, `\[`, `\]`, `\:`, `\|` and `\\` are these signs and no marks.
- A colon or a bar outside of brackets is text, and so is a number behind a parenthesis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sdxl_contract.errors import InvalidPrompt
from sdxl_contract.prompts.weights import (
    DEPTH_MAX,
    WEIGHT_MAX,
    WEIGHT_MIN,
    Fragment,
    refuse_lora_tags,
)

_STRONGER = 1.1
_SIGNS = frozenset("()[]:|\\")
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
# What may have been meant as a number: anything of digits, signs, full stops and commas.
_LIKE_A_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*|[-+]?(?:nan|inf|\d+e\d+)", re.IGNORECASE)
# Behind a colon, up to the parenthesis that closes.
_LAST = re.compile(r":\s{0,8}([^\s()\[\]:\\]{1,40})\s{0,8}\)")
_OPEN_NUMBER = re.compile(r":\s*[-+]?\.?\d")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
# Weights that differ by less are the same: 1.1 / 1.1 is 1.
_DIGITS = 9


@dataclass(frozen=True)
class _Weighted:
    parts: _Parts
    weight: float


@dataclass(frozen=True)
class _Swapped:
    """`before` in the first `number` steps, or in this share of them; `after` in the rest."""

    before: _Parts
    after: _Parts
    number: float
    is_share: bool


@dataclass(frozen=True)
class _Alternating:
    options: list[_Parts]


_Part = str | _Weighted | _Swapped | _Alternating
_Parts = list[_Part]


class Marked:
    """A prompt that was read; gives the fragments of any step.

    Raises:
        InvalidPrompt: a mark cannot be read; the message quotes it and names `field`.
    """

    def __init__(self, text: str, field: str = "prompt", passes: int = 1) -> None:
        refuse_lora_tags(text, field)
        self._parts = _Reader(text, field, passes).all()
        self._field = field

    def at(
        self, step: int, steps: int, after: int | None = None
    ) -> tuple[tuple[Fragment, ...], ...]:
        """The pieces between `BREAK`s at `step` of `steps`, counted from 0; one at least.

        Args:
            after: how many steps the first pass has, if this is one of a second.

        Raises:
            InvalidPrompt: nested weights multiply to more than is allowed.
        """
        pieces: list[list[Fragment]] = [[]]
        for fragment in _joined(_fragments(self._parts, _Moment(step, steps, after), 1.0)):
            if not WEIGHT_MIN <= fragment.weight <= WEIGHT_MAX:
                raise _wrong(
                    self._field, fragment.text, f"nested weights multiply to {fragment.weight:g}"
                )
            first, *others = _BREAK.split(fragment.text)
            if first:
                pieces[-1].append(Fragment(first, fragment.weight))
            pieces.extend([Fragment(other, fragment.weight)] if other else [] for other in others)
        filled = [tuple(piece) for piece in pieces if _text(piece).strip()]
        if filled:
            return tuple(filled)
        return ((Fragment(_text(pieces[0]), 1.0),),)


def _text(fragments: list[Fragment]) -> str:
    return "".join(fragment.text for fragment in fragments)


@dataclass(frozen=True)
class _Moment:
    step: int
    steps: int
    after: int | None

    def is_before(self, number: float, *, is_share: bool) -> bool:
        """Whether it is before a share of all steps, or before so many of them."""
        if is_share:
            share = number if self.after is None else number - 1
            # Whole steps, half of 5 is 2; but 0.29 of 100, which computes to a hair less, is 29.
            return self.step < int(round(share * self.steps, 6))
        return self.step < int(number) - (self.after or 0)


def _fragments(parts: _Parts, moment: _Moment, weight: float) -> Iterator[Fragment]:
    for part in parts:
        if isinstance(part, str):
            yield Fragment(part, round(weight, _DIGITS))
        elif isinstance(part, _Weighted):
            yield from _fragments(part.parts, moment, weight * part.weight)
        elif isinstance(part, _Alternating):
            chosen = part.options[moment.step % len(part.options)]
            yield from _fragments(chosen, moment, weight)
        else:
            is_before = moment.is_before(part.number, is_share=part.is_share)
            yield from _fragments(part.before if is_before else part.after, moment, weight)


def _joined(fragments: Iterator[Fragment]) -> list[Fragment]:
    """Neighbours of one weight as one: a word may be made of what two marks give."""
    joined: list[Fragment] = []
    for fragment in fragments:
        if not fragment.text:
            continue
        if joined and joined[-1].weight == fragment.weight:
            fragment = Fragment(joined.pop().text + fragment.text, fragment.weight)
        joined.append(fragment)
    return joined


class _Reader:
    """One pass over the text; `_place` is where it is."""

    def __init__(self, text: str, field: str, passes: int) -> None:
        self._text = text
        self._field = field
        self._passes = passes
        self._place = 0

    def all(self) -> _Parts:
        """The whole text."""
        parts: _Parts = []
        while self._place < len(self._text):
            _add(parts, *self._sequence("", 0))
            if self._place < len(self._text):
                # A closing bracket that nothing opened.
                _add(parts, self._text[self._place])
                self._place += 1
        return parts

    def _sequence(self, stops: str, depth: int) -> _Parts:
        """Parts up to one of `stops` (left unread), a closing bracket, or the end."""
        parts: _Parts = []
        text = self._text
        while self._place < len(text):
            sign = text[self._place]
            following = text[self._place + 1 : self._place + 2]
            if sign == "\\" and following in _SIGNS and following:
                _add(parts, following)
                self._place += 2
            elif sign in "([":
                if depth >= DEPTH_MAX:
                    raise _wrong(
                        self._field,
                        text[self._place :],
                        f"brackets are nested more than {DEPTH_MAX} deep",
                    )
                opened = self._place
                self._place += 1
                inner = self._round(opened, depth) if sign == "(" else self._square(opened, depth)
                _add(parts, *inner)
            elif sign in ")]" or sign in stops:
                break
            else:
                _add(parts, sign)
                self._place += 1
        return parts

    def _round(self, opened: int, depth: int) -> _Parts:
        """What `(` at `opened` holds, up to its `)`."""
        parts: _Parts = []
        weight: float | None = None
        while True:
            _add(parts, *self._sequence(":", depth + 1))
            sign = self._text[self._place : self._place + 1]
            if sign != ":":
                if sign == "]":
                    # Nothing opened it: text.
                    _add(parts, sign)
                    self._place += 1
                    continue
                break
            found = _LAST.match(self._text, self._place)
            behind = found[1] if found else ""
            if found and _NUMBER.fullmatch(behind):
                weight = float(behind)
                self._place = found.end() - 1
                break
            if found and _LIKE_A_NUMBER.fullmatch(behind):
                whole = self._text[opened : found.end()]
                raise _wrong(self._field, whole, f"{behind[:20]!r} is not a number")
            _add(parts, sign)
            self._place += 1
        whole = self._text[opened : self._place + 1]
        self._end(opened)
        if weight is None:
            return [_Weighted(parts, _STRONGER)]
        if weight > WEIGHT_MAX:
            raise _wrong(self._field, whole, f"{weight:g} is out of range")
        if not parts:
            raise _wrong(self._field, whole, "the parentheses are empty")
        return [_Weighted(parts, weight)]

    def _square(self, opened: int, depth: int) -> _Parts:
        """What `[` at `opened` holds, up to its `]`."""
        options: list[list[_Parts]] = [[[]]]  # by bars, then by colons
        while True:
            _add(options[-1][-1], *self._sequence(":|", depth + 1))
            sign = self._text[self._place : self._place + 1]
            if sign == ")":
                _add(options[-1][-1], sign)
            elif sign == ":":
                options[-1].append([])
            elif sign == "|":
                options.append([[]])
            else:
                break
            self._place += 1
        whole = self._text[opened : self._place + 1]
        is_closed = self._end(opened)
        number = _plain(options[-1][-1]).strip() if len(options[-1]) > 1 else ""
        is_number = _NUMBER.fullmatch(number) is not None
        if not is_closed:
            if len(options) > 1:
                raise _wrong(self._field, whole, "its closing bracket is missing")
            return [_Weighted(_with_colons(options[0]), 1 / _STRONGER)]
        if not is_number and _LIKE_A_NUMBER.fullmatch(number):
            raise _wrong(self._field, whole, f"{number[:20]!r} is not a number of steps")
        if len(options) > 1:
            if is_number:
                raise _wrong(
                    self._field, whole, "a bar and a number of steps need brackets of their own"
                )
            return [_Alternating([_with_colons(option) for option in options])]
        texts = options[0]
        if not is_number:
            return [_Weighted(_with_colons(texts), 1 / _STRONGER)]
        if len(texts) > 3:
            raise _wrong(self._field, whole, "more than two texts share one number of steps")
        before = texts[0] if len(texts) == 3 else []
        value, is_share = float(number), "." in number
        if is_share and value > self._passes:
            raise _wrong(self._field, whole, f"{value:g} is more than all steps")
        return [_Swapped(before, texts[-2], value, is_share)]

    def _end(self, opened: int) -> bool:
        """Read the closing bracket; False where the text ended without it."""
        if self._place < len(self._text):
            self._place += 1
            return True
        rest = self._text[opened:]
        if _OPEN_NUMBER.search(rest):
            raise _wrong(self._field, rest, "its closing bracket is missing")
        return False


def _add(parts: _Parts, *more: _Part) -> None:
    for part in more:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif part != "":
            parts.append(part)


def _plain(parts: _Parts) -> str:
    """The text of parts that are nothing but text; otherwise none."""
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else ""


def _with_colons(texts: list[_Parts]) -> _Parts:
    """Texts whose colons turned out to be text."""
    joined: _Parts = []
    for number, parts in enumerate(texts):
        if number:
            _add(joined, ":")
        _add(joined, *parts)
    return joined


def _wrong(field: str, quoted: str, why: str) -> InvalidPrompt:
    short = quoted if len(quoted) <= 60 else quoted[:57] + "..."
    return InvalidPrompt(
        f"{field}: the mark {short!r} cannot be read: {why}. Write (words:1.3), [words], "
        f"[from:to:0.5] or [one|other]; weights are from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}, and "
        "\\( \\) \\[ \\] are plain brackets",
        details={"field": field, "reason": "mark"},
    )
