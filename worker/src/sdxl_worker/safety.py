"""Whether a picture shows what the operator does not allow: a classifier of theirs, on the CPU.

Duty: a folder with an image classifier (ViT, CLIP's vision with a head, or another that
transformers knows; safetensors and configuration, no code) → a score for each picture. It works
beside the lane, so the next request is drawn meanwhile. A checker that fails lets nothing through.
Must not know: requests, HTTP, what becomes of a picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError

from sdxl_contract.errors import ContentRefused, GenerationFailed, ModelLoadFailed
from sdxl_contract.result import ImageSafety, SafetyReport
from sdxl_worker.settings import SafetyAction, Settings

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_HALF = [0.5, 0.5, 0.5]


class Scores(Protocol):
    """Anything that can tell how much of what is not allowed pictures show: 0 to 1 each."""

    name: str

    def __call__(self, pictures: Sequence[Image.Image]) -> list[float]: ...


class Checker:
    """Scores against a threshold, and what follows."""

    def __init__(self, scores: Scores, threshold: float, action: SafetyAction) -> None:
        self._scores = scores
        self._threshold = threshold
        self._refuses = action is SafetyAction.REFUSE

    def check(self, pictures: Sequence[Image.Image]) -> SafetyReport:
        """What is to be said of the pictures.

        Raises:
            ContentRefused: one shows what is not allowed, and the operator refuses that.
            GenerationFailed: nobody can tell.
        """
        found = self._scores(pictures)
        if len(found) != len(pictures) or not all(math.isfinite(score) for score in found):
            raise GenerationFailed("the safety checker gave no score, so the image is not shown")
        images = [
            ImageSafety(score=round(score, 6), flagged=score >= self._threshold) for score in found
        ]
        if self._refuses and any(image.flagged for image in images):
            raise ContentRefused(
                "the safety checker refused the image: it seems to show what the operator of this "
                "server does not allow. Another prompt or seed may do",
                details={"reason": "picture", "score": max(image.score for image in images)},
            )
        return SafetyReport(model=self._scores.name, threshold=self._threshold, images=images)


class Classifier:
    """An image classifier's scores: the shares of the labels that are not allowed, added up."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        """Load it.

        Raises:
            ModelLoadFailed: the folder holds no such classifier, or a label is none of its own.
        """
        self.name = folder.name
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise ModelLoadFailed(f"SAFETY_MODEL: {folder.name} has no {missing[0]}")
        from transformers import AutoModelForImageClassification

        try:
            # No code of the folder's own is run, nothing is fetched, and no pickle is opened.
            self._model: Any = AutoModelForImageClassification.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            ).eval()
            prepared = json.loads((folder / "preprocessor_config.json").read_text())
            size = prepared.get("size", {})
            side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
            self._side = int(side)
            mean, deviation = prepared.get("image_mean", _HALF), prepared.get("image_std", _HALF)
            self._mean = torch.tensor(mean).view(3, 1, 1)
            self._deviation = torch.tensor(deviation).view(3, 1, 1)
        except (
            OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError,
        ) as error:  # fmt: skip
            raise ModelLoadFailed(
                f"SAFETY_MODEL: {folder.name} is no image classifier that can be loaded "
                f"({type(error).__name__})"
            ) from error
        known = {name.lower(): int(place) for place, name in self._model.config.id2label.items()}
        unknown = [label for label in labels if label.lower() not in known]
        if unknown:
            raise ModelLoadFailed(
                f"SAFETY_LABELS: {folder.name} has no label {unknown[0]!r}; it has "
                + ", ".join(sorted(known))
            )
        self._places = [known[label.lower()] for label in labels]

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[float]:
        """One score for each picture; one after the other, so that memory stays small."""
        return [self._score(picture) for picture in pictures]

    def _score(self, picture: Image.Image) -> float:
        small = picture.convert("RGB").resize((self._side, self._side), Image.Resampling.BICUBIC)
        data = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        pixels = data.view(self._side, self._side, 3).permute(2, 0, 1).float() / 255
        logits = self._model(((pixels - self._mean) / self._deviation)[None]).logits[0]
        return float(logits.softmax(-1)[self._places].sum())


def load_checker(settings: Settings) -> Checker | None:
    """The checker that the settings ask for; None where they ask for none.

    Raises:
        ModelLoadFailed: it cannot be loaded; the worker does not start without it.
    """
    if settings.safety_model is None:
        return None
    scores = Classifier(settings.safety_model, settings.safety_labels)
    return Checker(scores, settings.safety_threshold, settings.safety_action)
