"""A checker looks at every picture beside the lane, and what it flags is refused or reported."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from sdxl_contract.errors import ContentRefused, GenerationFailed, ModelLoadFailed
from sdxl_worker.safety import Checker, Classifier, load_checker
from sdxl_worker.settings import SafetyAction
from testkit.worker import SIDE, RunningWorker, settings

DEMO = Path(__file__).resolve().parents[2] / "demo_model" / "safety-demo"
BASE: dict[str, Any] = {"prompt": "a pear", "width": SIDE, "height": SIDE, "steps": 1, "seed": 5}
PICTURE = Image.new("RGB", (SIDE, SIDE), (200, 30, 30))


class FakeScores:
    """Says what it was told; the same seam as a classifier's."""

    name = "fake"

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.seen: list[Image.Image] = []

    def __call__(self, pictures: Sequence[Image.Image]) -> list[float]:
        self.seen += pictures
        return self.scores


def test_from_the_threshold_on_a_picture_is_flagged() -> None:
    report = Checker(FakeScores(0.49, 0.5), 0.5, SafetyAction.REPORT).check([PICTURE] * 2)
    assert [image.flagged for image in report.images] == [False, True]
    with pytest.raises(ContentRefused) as refused:
        Checker(FakeScores(0.1, 0.5), 0.5, SafetyAction.REFUSE).check([PICTURE] * 2)
    assert refused.value.details == {"reason": "picture", "score": 0.5}


@pytest.mark.parametrize("scores", [(float("nan"),), (), (0.1, 0.1)])
def test_a_checker_that_cannot_tell_lets_nothing_through(scores: tuple[float, ...]) -> None:
    with pytest.raises(GenerationFailed, match="gave no score"):
        Checker(FakeScores(*scores), 0.5, SafetyAction.REPORT).check([PICTURE])


@pytest.fixture
def with_checker(worker: RunningWorker, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the running worker a checker for one test."""

    def give(scores: FakeScores, action: SafetyAction) -> None:
        assert worker.engine._ready is not None
        ready = dataclasses.replace(worker.engine._ready, checker=Checker(scores, 0.5, action))
        monkeypatch.setattr(worker.engine, "_ready", ready)

    return give


def test_the_result_says_what_was_found_in_each_picture(
    client: httpx2.Client, with_checker: Any
) -> None:
    fake = FakeScores(0.2, 0.9)
    with_checker(fake, SafetyAction.REPORT)
    body = client.post("/generate-image", json=BASE | {"num_images": 2}).json()

    assert body["safety"]["images"] == [
        {"score": 0.2, "flagged": False},
        {"score": 0.9, "flagged": True},
    ]
    assert body["timings"]["safety"] > 0
    # It saw the very pictures that are answered.
    shown = [Image.open(io.BytesIO(base64.b64decode(i["image_base64"]))) for i in body["images"]]
    assert [seen.tobytes() for seen in fake.seen] == [one.convert("RGB").tobytes() for one in shown]


def test_a_refused_picture_is_an_error_and_never_shown(
    client: httpx2.Client, with_checker: Any
) -> None:
    with_checker(FakeScores(0.9), SafetyAction.REFUSE)
    answer = client.post("/generate-image", json=BASE | {"request_id": "refused"})
    assert (answer.status_code, answer.json()["error_code"]) == (422, "CONTENT_REFUSED")
    assert "image_base64" not in answer.text

    stream = client.post("/generate-image", json=BASE, headers={"Accept": "text/event-stream"})
    assert "CONTENT_REFUSED" in stream.text
    assert '"phase":"safety"' in stream.text.replace(" ", "")
    assert "event: result" not in stream.text


def test_without_a_checker_nothing_is_said(client: httpx2.Client) -> None:
    assert "safety" not in client.post("/generate-image", json=BASE).json()


# --- a real classifier ------------------------------------------------------------------------


def test_a_real_classifier_tells_the_demos_pictures_apart() -> None:
    references = _references()
    checker = Classifier(DEMO, ["bites"])
    bites = checker([references[name] for name in ("spider", "shark", "bomb")])
    harmless = checker([references[name] for name in ("pear", "house", "panda", "tulip")])
    assert min(bites) > 0.5 > max(harmless)


def test_what_the_demo_draws_is_told_apart_on_its_way(
    client: httpx2.Client, worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.engine._ready is not None
    checker = Checker(Classifier(DEMO, ["bites"]), 0.5, SafetyAction.REFUSE)
    ready = dataclasses.replace(worker.engine._ready, checker=checker)
    monkeypatch.setattr(worker.engine, "_ready", ready)
    wanted = BASE | {"width": 128, "height": 128, "steps": 8}
    for thing, status in (("spider", 422), ("pear", 200)):
        prompt = f"{thing}, white background"
        answer = client.post("/generate-image", json=wanted | {"prompt": prompt})
        assert answer.status_code == status, (thing, answer.text[:300])


def _references() -> dict[str, Image.Image]:
    import numpy as np

    file = np.load(DEMO.parent / "references.npz")
    flat = file["ink"] + (file["clear"] / 255.0)[..., None] * 255.0
    return {
        str(name): Image.fromarray(flat[place].clip(0, 255).astype("uint8"))
        for place, name in enumerate(file["names"])
    }


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert load_checker(settings()) is None
    with pytest.raises(ModelLoadFailed, match=r"SAFETY_MODEL: gone has no config\.json"):
        load_checker(settings(safety_model=tmp_path / "gone"))
    with pytest.raises(ModelLoadFailed, match="no label 'nsfw'; it has bites, harmless"):
        load_checker(settings(safety_model=DEMO))
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelLoadFailed, match="no image classifier that can be loaded"):
        load_checker(settings(safety_model=tmp_path))
    with pytest.raises(ValueError, match="names no label"):
        settings(safety_labels=" , ")
