"""Reference pictures: diffusers' own bits by plain processors, nothing left behind, folders."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil

from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.limits import ControlKind
from sdxl_worker.auxiliary.adapters import build_adapter, find_adapters
from sdxl_worker.auxiliary.shelf import Shelf
from sdxl_worker.drawing.controls import Held, as_pixels
from sdxl_worker.drawing.references import Shown, look
from sdxl_worker.drawing.structure import Structure
from sdxl_worker.lora import ModelCorrupted
from testkit.auxiliary.adapters import (
    IMAGE_SIDE,
    adapters_folder,
    flat,
    image_encoder,
    ip_adapter,
)
from testkit.auxiliary.controls import awake
from testkit.auxiliary.denoised import SIDE, SOURCE, ours, theirs, tiny_pipe
from testkit.worker import (
    Borrowing,
    FileServer,
    RunningWorker,
    photo_like,
    png_of,
    running_worker,
    settings,
)

pytestmark = pytest.mark.process


# Of other sides than the encoder's: it is scaled and cut.
PICTURE = photo_like(96).crop((0, 0, 96, 64))
OTHER = PICTURE.rotate(180)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipe()


@pytest.fixture(scope="module")
def encoder() -> Any:
    return image_encoder()


def parts_of(encoder: Any) -> dict[str, Any]:
    reader = CLIPImageProcessorPil(size=IMAGE_SIDE, crop_size=IMAGE_SIDE)
    return {"image_encoder": encoder, "feature_extractor": reader}


def shown(pipe: Any, encoder: Any, tensors: Any, picture: Any = PICTURE, **more: Any) -> Shown:
    adapter = build_adapter(flat(tensors), pipe.unet).eval().requires_grad_(False)
    return Shown(adapter, *look(picture, encoder, adapter), **{"scale": 0.7} | more)


@pytest.mark.parametrize("plus", [False, True], ids=["base", "plus"])
@pytest.mark.parametrize("guidance", [5.5, 1.0])
def test_an_adapter_gives_diffusers_own_bits(
    pipe: Any, encoder: Any, plus: bool, guidance: float
) -> None:
    tensors, before = ip_adapter(pipe.unet, 1, plus=plus), dict(pipe.unet.attn_processors)
    expected = theirs(
        pipe, "StableDiffusionXLPipeline", parts_of(encoder), [(tensors, 0.7)],
        ip_adapter_image=PICTURE, guidance_scale=guidance,
    )  # fmt: skip
    found = ours(pipe, shown=[shown(pipe, encoder, tensors)], guidance=guidance)
    assert torch.equal(found, expected)
    assert not torch.equal(found, ours(pipe, guidance=guidance))
    after = pipe.unet.attn_processors
    assert all(after[name] is one for name, one in before.items())


def test_two_adapters_over_a_source_give_diffusers_own_bits(pipe: Any, encoder: Any) -> None:
    base, plus = (ip_adapter(pipe.unet, 2, plus=plus) for plus in (False, True))
    expected = theirs(
        pipe, "StableDiffusionXLImg2ImgPipeline", parts_of(encoder), [(base, 0.7), (plus, 0.4)],
        image=SOURCE, strength=0.5, ip_adapter_image=[PICTURE, OTHER],
    )  # fmt: skip
    both = [
        shown(pipe, encoder, base),
        shown(pipe, encoder, plus, OTHER, scale=0.4),
    ]
    assert torch.equal(ours(pipe, strength=0.5, shown=both), expected)


def test_an_adapter_beside_a_controlnet_gives_diffusers_own_bits(pipe: Any, encoder: Any) -> None:
    tensors = ip_adapter(pipe.unet, 3, plus=True)
    network = awake(ControlNetModel.from_unet(pipe.unet), 1)
    expected = theirs(
        pipe, "StableDiffusionXLControlNetPipeline", {"controlnet": network, **parts_of(encoder)},
        [(tensors, 0.7)], image=PICTURE, controlnet_conditioning_scale=0.8,
        ip_adapter_image=OTHER,
    )  # fmt: skip
    pixels = as_pixels(PICTURE, (SIDE, SIDE), network)
    held = Held(ControlKind.CONTROLNET, network, pixels, 0.8, 0.0, 1.0)
    found = ours(pipe, [held], shown=[shown(pipe, encoder, tensors, OTHER)])
    assert torch.equal(found, expected)


def test_each_part_of_a_reference_shows(pipe: Any, encoder: Any) -> None:
    """Else the comparisons above would not see that one is left out."""
    base, plus = (ip_adapter(pipe.unet, 2, plus=plus) for plus in (False, True))
    drawn = [
        ours(pipe, shown=these)
        for these in (
            [],
            [shown(pipe, encoder, base)],
            [shown(pipe, encoder, base, OTHER)],
            [shown(pipe, encoder, base, scale=0.3)],
            [shown(pipe, encoder, base, start=0.5)],
            [shown(pipe, encoder, base, end=0.5)],
            [shown(pipe, encoder, plus)],
            [shown(pipe, encoder, base), shown(pipe, encoder, plus)],
        )
    ]
    for number, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:number]), number
    assert torch.equal(ours(pipe, shown=[shown(pipe, encoder, base, scale=0.0)]), drawn[0])


def test_whatever_ends_a_pass_takes_the_adapters_off(
    pipe: Any, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure, one = Structure(pipe), shown(pipe, encoder, ip_adapter(pipe.unet, 1, plus=False))
    held = Held(ControlKind.CONTROLNET, None, SOURCE, 1.0, 0.0, 1.0)  # fails at the first step
    with pytest.raises(TypeError):
        ours(pipe, [held], shown=[one])
    structure.verify()
    # The control: the same without taking them off.
    before = dict(pipe.unet.attn_processors)
    monkeypatch.setattr(type(pipe.unet), "set_attn_processor", _only_once(pipe.unet))
    try:
        with pytest.raises(TypeError):
            ours(pipe, [held], shown=[one])
        with pytest.raises(ModelCorrupted, match="processor"):
            structure.verify()
    finally:
        monkeypatch.undo()
        pipe.unet.set_attn_processor(before)
    structure.verify()


def _only_once(unet: Any) -> Any:
    real = type(unet).set_attn_processor
    calls: list[None] = []

    def set_attn_processor(self: Any, processors: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            real(self, processors)

    return set_attn_processor


@pytest.fixture(scope="module")
def folder(worker: RunningWorker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an operator has it, for the running worker's model, with what cannot be used."""
    assert worker.engine._ready is not None
    unet = worker.engine._ready.model.pipe.unet
    found = adapters_folder(tmp_path_factory.mktemp("adapters"), unet)
    strange = flat(ip_adapter(tiny_pipe().unet, 1, plus=False))
    face = flat(ip_adapter(unet, 1, plus=False))
    face["ip_adapter.0.to_q_lora.down.weight"] = torch.zeros(1, 1)
    blind = flat(ip_adapter(unet, 1, plus=False))
    blind["image_proj.proj.weight"] = torch.zeros(blind["image_proj.proj.weight"].shape[0], 99)
    for name, tensors in (
        ("of another model", strange), ("face id", face), ("of another encoder", blind),
        ("a lora", {"lora_unet.weight": torch.zeros(1)}), (".hidden", strange),
    ):  # fmt: skip
        save_file(tensors, found / f"{name}.safetensors")
    (found / "cut.safetensors").write_bytes((found / "base.safetensors").read_bytes()[:5000])
    (found / "pickle.bin").write_bytes(b"\x80\x04")
    return found


def test_a_folder_s_usable_adapters_are_listed(
    worker: RunningWorker, folder: Path, tmp_path: Path
) -> None:
    assert worker.engine._ready is not None
    unet = worker.engine._ready.model.pipe.unet
    encoder, *adapters = find_adapters(folder, unet)
    assert [(one.name, one.about.kind) for one in adapters] == [
        ("base", "ip_adapter"),
        ("plus", "ip_adapter_plus"),
    ]
    assert {one.about.encoder_sha256 for one in adapters} == {encoder.sha256}
    shelf = Shelf([encoder, *adapters], 1)
    for item in (encoder, *adapters):
        shelf.get(item.kind, item.name)
        shelf.verify_full()
    next(shelf.get("adapter", "plus").parameters()).data.add_(1)
    with pytest.raises(ModelCorrupted, match="adapter plus"):
        shelf.verify_full()
    assert find_adapters(None, unet) == find_adapters(tmp_path, unet) == []
    (tmp_path / "base.safetensors").symlink_to(folder / "base.safetensors")
    assert find_adapters(tmp_path, unet) == []  # nothing to look through
    with pytest.raises(ModelLoadFailed, match="ADAPTERS_DIR"):
        find_adapters(tmp_path / "nowhere", unet)


@pytest.fixture(scope="module")
def provided(worker: RunningWorker, folder: Path) -> Iterator[RunningWorker]:
    config = settings(adapters_dir=folder, auxiliary_bytes=1)
    with running_worker(config, Borrowing(config, worker)) as running:
        yield running


def test_over_http_a_drawing_takes_up_pictures_and_the_next_one_does_not(
    provided: RunningWorker, files: FileServer
) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    image = {"url": files.add(buffer.getvalue(), "/look.png")}
    body: dict[str, Any] = {
        "prompt": "a red apple", "seed": 5, "steps": 3, "width": 64, "height": 64
    }  # fmt: skip
    base, plus = {"adapter": "base", "image": image}, {"adapter": "plus", "image": image}
    with httpx2.Client(base_url=provided.url, timeout=60) as http:
        listed = http.get("/health").json()["limits"]["adapters"]
        assert [one["name"] for one in listed] == ["base", "plus"]

        def drawn(**fields: Any) -> bytes:
            answer = http.post("/generate-image", json=body | fields)
            assert answer.status_code == 200, answer.text
            assert answer.json()["structure_clean"] is True
            return png_of(answer.json()).tobytes()

        free, one = drawn(), drawn(references=[base])
        told = http.post("/generate-image", json=body | {"references": [base]}).json()
        assert (
            'ControlNet 0: "Module: ip-adapter, Model: base, Weight: 1, Guidance Start: 0, '
        ) in png_of(told).info["parameters"]
        both = drawn(references=[base | {"scale": 0.5}, plus | {"end": 0.7}])
        twice = drawn(references=[plus], hires={"scale": 1.5, "steps": 1, "strength": 0.5})
        over = drawn(references=[base], image=image, strength=0.7)
        assert len({free, one, both, twice, over}) == 5
        assert drawn() == free
        assert drawn(references=[base]) == one
        for wrong, field in (
            ({"adapter": "face"}, "references[0].adapter"),
            ({"scale": 3}, "references[0].scale"),
            ({"start": 0.5, "end": 0.5}, "references[0]"),
            ({"image": {"url": files.add(b"x", "/x")}}, "references[0].image"),
        ):
            refused = http.post("/generate-image", json=body | {"references": [base | wrong]})
            assert refused.status_code == 422, refused.text
            assert refused.json()["details"]["field"] == field
        assert drawn() == free


def test_the_worker_finds_an_adapter_that_was_left_on(
    worker: RunningWorker, folder: Path, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of `structure_clean`: a fault that leaves the processors ends the worker."""
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    image = {"url": files.add(buffer.getvalue(), "/left.png")}
    config = settings(adapters_dir=folder)
    assert worker.engine._ready is not None
    unet = worker.engine._ready.model.pipe.unet
    before = dict(unet.attn_processors)
    body = {
        "prompt": "a red apple", "steps": 2, "width": 64, "height": 64,
        "references": [{"adapter": "base", "image": image}],
    }  # fmt: skip
    try:
        with (
            running_worker(config, Borrowing(config, worker)) as running,
            httpx2.Client(base_url=running.url, timeout=60) as http,
        ):
            monkeypatch.setattr(type(unet), "set_attn_processor", _only_once(unet))
            answer = http.post("/generate-image", json=body)
            assert (answer.status_code, answer.json()["error_code"]) == (503, "MODEL_LOAD_FAILED")
            assert http.get("/health").json()["status"] == "failed"
    finally:
        monkeypatch.undo()
        unet.set_attn_processor(before)
