"""Upscalers from files: the numbers of an independent forward, sizes, tiles, refusals, proof."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, leaky_relu, pixel_shuffle, prelu

from sdxl_contract.errors import ModelLoadFailed, RequestTimeout
from sdxl_contract.request import GenerateRequest
from sdxl_worker.auxiliary import upscaling
from sdxl_worker.auxiliary.provided import find_upscalers
from sdxl_worker.auxiliary.shelf import Shelf
from sdxl_worker.auxiliary.upscaler_networks import NotAnUpscaler, build_upscaler
from sdxl_worker.auxiliary.upscaling import enlarge
from sdxl_worker.lora import ModelCorrupted
from testkit.auxiliary.upscalers import Tensors, compact, esrgan
from testkit.worker import (
    Borrowing,
    FileServer,
    RunningWorker,
    photo_like,
    png_of,
    running_worker,
    settings,
)

CPU = torch.device("cpu")


def conv(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)


def esrgan_by_hand(t: Tensors, x: Tensor, *, old: bool, blocks: int = 2) -> Tensor:
    """From the paper's figure: no modules."""
    if t["model.0.weight" if old else "conv_first.weight"].shape[1] == 12:
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 12, h // 2, -1)
    x = first = conv(t, "model.0" if old else "conv_first", x)
    for block in range(blocks):
        outer = x
        for dense in (1, 2, 3):
            seen = x
            for number in range(1, 6):
                name = (
                    f"model.1.sub.{block}.RDB{dense}.conv{number}.0"
                    if old
                    else f"body.{block}.rdb{dense}.conv{number}"
                )
                made = conv(t, name, seen)
                if number < 5:
                    seen = torch.cat([seen, leaky_relu(made, 0.2)], 1)
            x = x + 0.2 * made
        x = outer + 0.2 * x
    trunk, up1, up2, hr, last = (
        (f"model.1.sub.{blocks}", "model.3", "model.6", "model.8", "model.10")
        if old
        else ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
    )
    x = first + conv(t, trunk, x)
    for name in (up1, up2):
        x = leaky_relu(conv(t, name, x.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
    return conv(t, last, leaky_relu(conv(t, hr, x), 0.2))


def compact_by_hand(t: Tensors, x: Tensor, scale: int, convs: int = 3) -> Tensor:
    y = x
    for number in range(convs + 1):
        y = prelu(conv(t, f"body.{2 * number}", y), t[f"body.{2 * number + 1}.weight"])
    y = pixel_shuffle(conv(t, f"body.{2 * convs + 2}", y), scale)
    return y + interpolate(x, scale_factor=scale, mode="nearest")


PIXELS = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "tensors", "expected"),
    [
        ("esrgan", esrgan(old=True), lambda t: esrgan_by_hand(t, PIXELS, old=True)),
        ("esrgan", esrgan(old=False), lambda t: esrgan_by_hand(t, PIXELS, old=False)),
        ("esrgan", esrgan(old=False, into=12), lambda t: esrgan_by_hand(t, PIXELS, old=False)),
        ("compact", compact(), lambda t: compact_by_hand(t, PIXELS, 4)),
        ("compact", compact(scale=2), lambda t: compact_by_hand(t, PIXELS, 2)),
    ],
    ids=["old", "new", "folded", "compact", "compact x2"],
)
def test_a_network_computes_what_an_independent_forward_does(
    name: str, tensors: Tensors, expected: Any
) -> None:
    found, network = build_upscaler(tensors)
    wanted = expected(tensors)
    assert found == name
    assert wanted.shape[2] == 12 * network.scale
    torch.testing.assert_close(network(PIXELS), wanted, rtol=1e-5, atol=1e-6)
    # The comparison sees any one tensor.
    for key in list(tensors)[:: max(1, len(tensors) // 7)]:
        other = build_upscaler({**tensors, key: tensors[key] + 0.3})[1]
        assert (other(PIXELS) - wanted).abs().max() > 1e-4, key


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    "tensors",
    [
        {}, {"a": torch.zeros(2)}, without(esrgan(old=True), "model.8.bias"),
        without(compact(), "body.3.weight"), compact() | {"extra": torch.zeros(1)},
        esrgan(old=False, into=7), {"conv_first.weight": torch.zeros(2, 2)},
        {"body.0.weight": torch.zeros(4, 3, 3, 3), "body.1.weight": torch.zeros(4)},
        compact(width=600, convs=1),
    ],
)  # fmt: skip
def test_what_is_no_upscaler_is_refused(tensors: Tensors) -> None:
    with pytest.raises(NotAnUpscaler):
        build_upscaler(tensors)


def test_a_folder_s_usable_files_are_listed_by_name_and_hash(folder: Path) -> None:
    found = {item.name: item for item in find_upscalers(folder)}
    assert sorted(found) == ["4x-Old", "compact x2"]
    data = (folder / "4x-Old.safetensors").read_bytes()
    assert found["4x-Old"].sha256 == hashlib.sha256(data).hexdigest()
    assert (found["4x-Old"].about.scale, found["4x-Old"].about.architecture) == (4, "esrgan")
    assert find_upscalers(None) == []
    with pytest.raises(ModelLoadFailed, match="UPSCALERS_DIR"):
        find_upscalers(folder / "none")


def test_tiles_show_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_upscaler(compact(scale=2))[1]
    source = photo_like(64).crop((0, 0, 64, 50))
    whole = enlarge(source, (128, 100), network, CPU)
    monkeypatch.setattr(upscaling, "TILE", 20)
    monkeypatch.setattr(upscaling, "MARGIN", 8)
    tiled = np.asarray(enlarge(source, (128, 100), network, CPU)).astype(int)
    assert np.abs(tiled - np.asarray(whole)).max() <= 1
    monkeypatch.setattr(upscaling, "MARGIN", 0)
    seams = np.asarray(enlarge(source, (128, 100), network, CPU)).astype(int)
    assert np.abs(seams - np.asarray(whole)).max() > 1  # the check would see them


def test_a_network_is_used_as_often_as_it_takes_and_lanczos_does_the_rest() -> None:
    network = build_upscaler(compact(scale=2))[1]
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RequestTimeout("late")

    source = photo_like(16)
    assert enlarge(source, (24, 24), network, CPU, check).size == (24, 24)
    assert calls == 1
    assert enlarge(source, (64, 64), network, CPU, check).size == (64, 64)
    assert calls == 3
    with pytest.raises(RequestTimeout):
        enlarge(source, (32, 32), network, CPU, check)
    plain = enlarge(source, (32, 32), None, CPU)
    assert plain.tobytes() == source.resize((32, 32), Image.Resampling.LANCZOS).tobytes()
    # A picture whose sides are no multiples of what a folding network takes.
    folding = build_upscaler(esrgan(old=False, into=12))[1]
    assert enlarge(source.crop((0, 0, 15, 13)), (30, 26), folding, CPU).size == (30, 26)


def test_the_shelf_keeps_within_its_bytes_and_sees_what_was_written(folder: Path) -> None:
    items = find_upscalers(folder)
    shelf = Shelf(items, budget=1)
    old = shelf.get("upscaler", "4x-Old")
    assert shelf.get("upscaler", "4x-Old") is old
    shelf.verify_full()
    small = shelf.get("upscaler", "compact x2")
    assert shelf.nbytes == sum(t.nbytes for t in small.state_dict().values())
    with torch.no_grad():
        next(small.parameters()).mul_(1)
    with pytest.raises(ModelCorrupted, match="compact x2"):
        shelf.verify()
    shelf.clear()
    hook = shelf.get("upscaler", "compact x2").register_forward_hook(lambda *_: None)
    with pytest.raises(ModelCorrupted):
        shelf.verify()
    hook.remove()
    shelf.verify()
    # Past the version counter, as a kernel would.
    shelf.get("upscaler", "compact x2").get_parameter("body.0.weight").data.numpy()[0] += 1
    with pytest.raises(ModelCorrupted, match=r"body\.0\.weight"):
        shelf.verify_full()


@pytest.fixture(scope="module")
def provided(worker: RunningWorker, folder: Path) -> Any:
    config = settings(upscalers_dir=folder)
    with running_worker(config, Borrowing(config, worker)) as running:
        yield running


def test_over_http_a_picture_is_enlarged_and_nothing_drawn(
    provided: RunningWorker, files: FileServer, folder: Path
) -> None:
    source = photo_like(48)
    buffer = io.BytesIO()
    source.save(buffer, "PNG")
    image = {"url": files.add(buffer.getvalue(), "/source.png")}
    body: dict[str, Any] = {"prompt": "", "image": image, "upscale": {"upscaler": "4x-Old"}}
    with httpx2.Client(base_url=provided.url, timeout=60) as http:
        health = http.get("/health").json()["limits"]["upscalers"]
        assert [one["name"] for one in health] == ["4x-Old", "compact x2"]
        answer = http.post("/generate-image", json=body)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        picture = png_of(result)
        network = build_upscaler(esrgan(old=True))[1]
        assert picture.tobytes() == enlarge(source, (96, 96), network, CPU).tobytes()
        assert picture.info["parameters"] == (
            "Postprocess upscale by: 2, Postprocess upscaler: 4x-Old"
        )
        assert (result["image_size"], result["structure_clean"]) == ([96, 96], True)
        assert result["timings"]["denoise"] == 0
        hires = {"upscaler": "compact x2", "scale": 1.5, "steps": 1, "strength": 0.5}
        words = {"prompt": "a red apple", "seed": 5, "steps": 2, "width": 64, "height": 64}
        second = http.post("/generate-image", json=words | {"hires": hires})
        assert second.status_code == 200, second.text
        assert second.json()["image_size"] == [96, 96]
        assert "Hires upscaler: compact x2" in png_of(second.json()).info["parameters"]
        for wrong, field in (
            ({"upscale": {"upscaler": "none"}}, "upscale.upscaler"),
            ({"upscale": {"upscaler": "latent"}}, "upscale.upscaler"),
            ({"upscale": {}, "image": None}, "upscale"),
            ({"strength": 0.5}, "strength"),
            ({"width": 64}, "width"),
            ({"num_images": 2}, "num_images"),
            ({"loras": [{"url": "https://a.example/a"}]}, "loras"),
            ({"upscale": {"scale": 9}}, "upscale.scale"),
        ):
            refused = http.post("/generate-image", json=body | wrong)
            assert refused.status_code == 422
            assert refused.json()["details"]["field"] == field
        large = io.BytesIO()
        Image.new("RGB", (2500, 2000)).save(large, "PNG")
        image = {"url": files.add(large.getvalue(), "/large.png")}
        refused = http.post(
            "/generate-image", json=body | {"image": image, "upscale": {"scale": 2}}
        )
        assert (refused.status_code, refused.json()["details"]["reason"]) == (422, "too_large")


def test_an_upscaling_asks_for_no_steps() -> None:
    request = GenerateRequest.model_validate(
        {"prompt": "", "image": {"url": "https://a.example/a"}, "upscale": {}, "steps": 1}
    )
    assert (request.steps_to_draw(), request.all_steps(), request.cost()) == (0, 0, 0)
