r"""Weights in prompts: from text to fragments with strengths.

Duty: `(word:1.3)` and `(word)1.3` → [("word", 1.3)]. Must not know: tokens, encoders.

The rules, all of them:
- `(some words:1.3)` and `(some words)1.3` say the same: these words count 1.3-fold.
- Weights are decimal numbers from 0 to 3. Nested ones multiply.
- Blanks around the colon and behind the number say nothing: `(red : 1.5 )` is `(red:1.5)`.
- Parentheses without a weight are text, as in any prose; so are `(style: oil)` and `(at 5:30 pm)`,
  because a weight is one word right behind its colon, or a number behind blanks.
- `\(` and `\)` are parentheses that never carry a weight.
- What looks like a weight and is none (`(word:)`, `(word:x)`, `(word:1.2.3)`, `(word:9)`,
  `(word:1:2)`, `(word):1`, `(word)++`, a missing parenthesis, brackets or signs of another script
  around a number) is refused by name: drawing another picture in silence would be worse.
- `<lora:name:0.8>` is refused as well: LoRAs are named beside the prompt, not in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdxl_contract.errors import InvalidPrompt

WEIGHT_MIN, WEIGHT_MAX = 0.0, 3.0
DEPTH_MAX = 16
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
# What stands where a weight stands after a colon: one word, up to the parenthesis.
_AFTER_COLON = re.compile(r"\s*:([^\s:()\\]*)\s*$")
# Behind blanks only a number is one: `(style: oil)` is text.
_AFTER_COLON_AND_BLANKS = re.compile(r"\s*:\s+([-+]?(?:\d[\d.,]*|[.,]\d[\d.,]*))\s*$")
# After a parenthesis: a sign or digits, then all that a number may be mistaken to hold.
_AFTER_CLOSE = re.compile(r"[-+]?\.?\d[\d.]*(?:,\d+)?")
_OPEN_WEIGHT = re.compile(r":[-+]?\.?\d")
# Tags of other tools; also written into the files of this project's own pictures.
_TAG = re.compile(
    r"(?:[<\uff1c\ufe64]|&lt;)\s*(?:lora|lyco|lycoris|hypernet)\s*[:\uff1a\ufe55\u2236][^<>]{0,60}>?",
    re.IGNORECASE,
)
# What it holds may be in brackets of its own, once.
_OTHER_BRACKETS = re.compile(
    r"(?<!\\)[\[{](?:[^\[\]{}()<>]|[\[({][^\[\]{}()<>]{0,80}[\])}]){1,200}:\s*[\d.]+\s*[\]}]"
)
_WIDE = re.compile(
    r"[(\uff08\ufe59][^()\uff08\uff09\ufe59\ufe5a]{1,200}[:\uff1a\ufe55\u2236]"
    r"\s*[\d.]+\s*[)\uff09\ufe5a]"
)
_WIDE_SIGNS = frozenset("\uff08\uff09\uff1a\ufe55\ufe59\ufe5a\u2236")
# Where a parenthesis follows, the number is a weight of what stands around.
_OUTSIDE = re.compile(r"(?<!\\)\)\s{0,8}:[-+]?\.?\d[\d.,]*(?![\d.,]|\s*\))")
_PLUS = re.compile(r"(?<!\\)\)(\+{1,8}|-{2,8})(?![\w+-])")
_TWO_COLONS = re.compile(r"::\s*[-+]?[\d.,]+\s*$")
_TWO_WEIGHTS = re.compile(r":\s*[-+]?(?:\d[\d.]*|\.\d+)\s*:\s*[-+]?[\d.,]+\s*$")


@dataclass(frozen=True)
class Fragment:
    """Consecutive text of one strength; 1.0 is plain text."""

    text: str
    weight: float


class _Group:
    """An open parenthesis and what has come since."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.parts: list[Fragment] = []

    def add(self, text: str, weight: float = 1.0) -> None:
        if not text:
            return
        if self.parts and self.parts[-1].weight == weight:
            text = self.parts.pop().text + text
        self.parts.append(Fragment(text, weight))

    def scaled_into(self, outer: _Group, weight: float) -> None:
        for part in self.parts:
            outer.add(part.text, part.weight * weight)


def parse_weights(text: str, field: str = "prompt") -> list[Fragment]:
    """Fragments of `text` in order; their texts joined are the prompt without its syntax.

    Raises:
        InvalidPrompt: a weight is malformed or out of range; the message quotes it and names
            `field`.
    """
    _refuse_lookalikes(text, field)
    stack = [_Group(0)]
    place = 0
    while place < len(text):
        sign = text[place]
        if sign == "\\" and text[place + 1 : place + 2] in ("(", ")"):
            stack[-1].add(text[place + 1])
            place += 2
        elif sign == "(" and len(stack) <= DEPTH_MAX:
            stack.append(_Group(place))
            place += 1
        elif sign == ")" and len(stack) > 1:
            place = _close(text, place, stack, field)
        else:
            stack[-1].add(sign)
            place += 1
    while len(stack) > 1:
        group = stack.pop()
        if _OPEN_WEIGHT.search(text, group.start):
            raise _malformed(field, text[group.start :], "its closing parenthesis is missing")
        # An open parenthesis without a weight is text: a smiley, or a list's `1)`.
        stack[-1].add("(")
        group.scaled_into(stack[-1], 1.0)
    fragments = stack[0].parts
    for fragment in fragments:
        if fragment.weight > WEIGHT_MAX:
            raise _malformed(
                field, fragment.text, f"nested weights multiply to {fragment.weight:g}"
            )
    return fragments or [Fragment("", 1.0)]


def refuse_lora_tags(text: str, field: str) -> None:
    """Refuse a text that names a LoRA: it would be read as words.

    Raises:
        InvalidPrompt: it does; the message quotes the tag and names `field`.
    """
    tag = _TAG.search(text)
    if tag is not None:
        raise InvalidPrompt(
            f"{field}: {tag[0][:60]!r} would be read as words: name LoRAs in the request's own "
            "fields, not in the prompt",
            details={"field": field, "reason": "lora_tag"},
        )


def _refuse_lookalikes(text: str, field: str) -> None:
    """Refuse what other tools take for a weight or a LoRA and this syntax does not know."""
    refuse_lora_tags(text, field)
    found = _OTHER_BRACKETS.search(text)
    if found is not None:
        raise _malformed(
            field,
            found[0],
            "only parentheses carry a weight, unless prompt_syntax is a1111",
        )
    for found in _WIDE.finditer(text):
        if _WIDE_SIGNS & set(found[0]):
            raise _malformed(field, found[0], "its signs are not those of ASCII")
    found = _OUTSIDE.search(text)
    if found is not None:
        raise _malformed(field, found[0], "the number stands outside of the parentheses")
    found = _PLUS.search(text)
    if found is not None:
        raise _malformed(field, found[0], f"{found[1]!r} is not a number")


def _close(text: str, place: int, stack: list[_Group], field: str) -> int:
    """Handle the `)` at `place`; returns where to go on."""
    group = stack.pop()
    outer = stack[-1]
    whole = text[group.start : place + 1]
    content = text[group.start + 1 : place]
    inside = _AFTER_COLON_AND_BLANKS.search(content) or _AFTER_COLON.search(content)
    behind = _AFTER_CLOSE.match(text, place + 1)
    if behind is not None and text[behind.end() : behind.end() + 1].isalpha():
        behind = None  # `(draft)3d` goes on as a word
    if inside is not None and not _ends_in_text(group, inside.group(0)):
        inside = None
    if inside is None and behind is None:
        outer.add("(")
        group.scaled_into(outer, 1.0)
        outer.add(")")
        return place + 1
    if inside is not None and behind is not None:
        raise _malformed(field, whole + behind.group(0), "it has two weights")
    if inside is not None:
        if _TWO_COLONS.search(content):
            raise _malformed(field, whole, "it has two colons")
        if _TWO_WEIGHTS.search(content):
            raise _malformed(field, whole, "it has two weights")
        weight = _number(inside.group(1), field, whole)
        last = group.parts.pop()
        group.add(last.text.removesuffix(inside.group(0)))
        place += 1
    else:
        assert behind is not None
        # A full stop behind the number ends the sentence.
        number = behind.group(0).removesuffix(".")
        weight = _number(number, field, whole + number)
        place += 1 + len(number)
    if not "".join(part.text for part in group.parts).strip():
        raise _malformed(field, whole, "the parentheses are empty")
    group.scaled_into(outer, weight)
    return place


def _ends_in_text(group: _Group, tail: str) -> bool:
    """Whether `tail` is plain text at the group's end, not part of what a nested weight held."""
    return bool(group.parts) and group.parts[-1].text.endswith(tail)


def _number(text: str, field: str, whole: str) -> float:
    if not _NUMBER.fullmatch(text):
        what = f"{text[:20]!r} is not a number" if text else "the number is missing"
        raise _malformed(field, whole, what)
    weight = float(text)
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise _malformed(field, whole, f"{text[:20]} is out of range")
    return weight


def _malformed(field: str, quoted: str, why: str) -> InvalidPrompt:
    short = quoted if len(quoted) <= 60 else quoted[:57] + "..."
    return InvalidPrompt(
        f"{field}: the weight in {short!r} cannot be read: {why}. Write (words:1.3) or (words)1.3 "
        f"with a number from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}; \\( and \\) are plain parentheses",
        details={"field": field, "reason": "weight"},
    )
