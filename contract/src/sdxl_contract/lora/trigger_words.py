"""Which words probably call up what a LoRA learnt, read from its file's metadata.

Duty: untrusted metadata → a few words, in time and memory that grow no faster than the metadata.
Must not know: tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from sdxl_contract.lora.safetensors import shown

MAX_TRIGGER_WORDS = 12
_WORD_CHARS = 60
_PHRASE_CHARS = 4000
# What trainers write about a set of some ten thousand images; more is not worth unfolding.
_JSON_CHARS = 16 * 2**20
_JSON_BRACKETS, _JSON_COMMAS = 100_000, 1_000_000


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Words that probably call up what the LoRA learnt, the likeliest first.

    `modelspec.trigger_phrase` says so; else the tags that nearly every training caption had,
    then the folders' names (kohya's `<repeats>_<words>`). All untrusted: only for showing.
    """
    parts = metadata.get("modelspec.trigger_phrase", "")[:_PHRASE_CHARS].split(",")
    images = _image_count(metadata.get("ss_dataset_dirs", ""))
    words: dict[str, str] = {}
    for part in (*parts, *_frequent_tags(metadata.get("ss_tag_frequency", ""), images)):
        word = shown(part.strip(), _WORD_CHARS)
        if word:
            words.setdefault(word.lower(), word)
        if len(words) == MAX_TRIGGER_WORDS:
            break
    return list(words.values())


def _json_object(text: str) -> dict[str, object]:
    """What `text` holds as JSON; empty where it is no object, or a far too large one."""
    if (
        len(text) > _JSON_CHARS
        or text.count("{") + text.count("[") > _JSON_BRACKETS
        or text.count(",") > _JSON_COMMAS
    ):
        return {}
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int:
    """A plausible positive count, else 0."""
    return value if type(value) is int and 0 < value < 2**31 else 0


def _image_count(text: str) -> int:
    """Images of all training folders (kohya's `ss_dataset_dirs`); 0 where it is not said."""
    folders = _json_object(text).values()
    return sum(_count(folder.get("img_count")) for folder in folders if isinstance(folder, dict))


def _frequent_tags(text: str, images: int) -> list[str]:
    """Tags of at least half of the captions, at most 8.

    Where the number of images is not known, the most frequent tag stands for it.
    """
    counts: Counter[str] = Counter()
    for tags in _json_object(text).values():
        if not isinstance(tags, dict):
            continue
        for tag, value in tags.items():
            if count := _count(value):
                counts[tag.strip()] += count
    most = max(images, max(counts.values(), default=0))
    return [tag for tag, count in counts.most_common(8) if 2 * count >= most]
