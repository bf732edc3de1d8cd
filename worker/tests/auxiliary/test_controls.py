"""Control networks: diffusers' own bits wherever it has the same, edges, and folders."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import httpx2
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from sdxl_contract.drawing.edges import canny
from sdxl_contract.limits import ControlKind
from sdxl_worker.auxiliary.provided import find_controls
from sdxl_worker.auxiliary.shelf import Shelf
from sdxl_worker.drawing.controls import Held, as_map, as_pixels
from testkit.auxiliary.controls import adapter_for, awake, controls_folder, union_for
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


PICTURE = photo_like(SIDE)
OTHER = PICTURE.rotate(90)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipe()


@pytest.fixture(scope="module")
def networks(pipe: Any) -> dict[str, Any]:
    return {
        "one": awake(ControlNetModel.from_unet(pipe.unet), 1),
        "two": awake(ControlNetModel.from_unet(pipe.unet), 2),
        "union": union_for(pipe.unet, 3),
        "sketch": adapter_for(pipe.unet, 4),
        "grey": adapter_for(pipe.unet, 5, in_channels=1),
    }


def held(network: Any, kind: ControlKind, picture: Image.Image = PICTURE, **more: Any) -> Held:
    values = {"scale": 0.8, "start": 0.0, "end": 1.0} | more
    prepared = as_map if kind is ControlKind.T2I_ADAPTER else as_pixels
    return Held(kind, network, prepared(picture, (SIDE, SIDE), network), **values)


CONTROLNET, UNION = ControlKind.CONTROLNET, ControlKind.CONTROLNET_UNION
ADAPTER = ControlKind.T2I_ADAPTER


def test_a_controlnet_gives_diffusers_own_bits(pipe: Any, networks: dict[str, Any]) -> None:
    for start, end in ((0.0, 1.0), (0.25, 0.75)):
        expected = theirs(
            pipe, "StableDiffusionXLControlNetPipeline", {"controlnet": networks["one"]},
            image=PICTURE, controlnet_conditioning_scale=0.8, control_guidance_start=start,
            control_guidance_end=end,
        )  # fmt: skip
        found = ours(pipe, [held(networks["one"], CONTROLNET, start=start, end=end)])
        assert torch.equal(found, expected)


def test_two_controlnets_give_diffusers_own_bits(pipe: Any, networks: dict[str, Any]) -> None:
    both = [networks["one"], networks["two"]]
    expected = theirs(
        pipe, "StableDiffusionXLControlNetPipeline", {"controlnet": both},
        image=[PICTURE, OTHER], controlnet_conditioning_scale=[0.8, 0.5],
        control_guidance_start=[0.0, 0.5], control_guidance_end=[1.0, 1.0],
    )  # fmt: skip
    controls = [
        held(networks["one"], CONTROLNET),
        held(networks["two"], CONTROLNET, OTHER, scale=0.5, start=0.5),
    ]
    assert torch.equal(ours(pipe, controls), expected)


def test_a_controlnet_over_a_source_gives_diffusers_own_bits(
    pipe: Any, networks: dict[str, Any]
) -> None:
    expected = theirs(
        pipe, "StableDiffusionXLControlNetImg2ImgPipeline", {"controlnet": networks["one"]},
        image=SOURCE, control_image=PICTURE, strength=0.5, controlnet_conditioning_scale=0.8,
    )  # fmt: skip
    assert torch.equal(ours(pipe, [held(networks["one"], CONTROLNET)], 0.5), expected)


def test_a_union_gives_diffusers_own_bits(pipe: Any, networks: dict[str, Any]) -> None:
    expected = theirs(
        pipe, "StableDiffusionXLControlNetUnionPipeline", {"controlnet": networks["union"]},
        control_image=[PICTURE], control_mode=[3], controlnet_conditioning_scale=0.8,
    )  # fmt: skip
    assert torch.equal(ours(pipe, [held(networks["union"], UNION, mode=3)]), expected)
    assert not torch.equal(ours(pipe, [held(networks["union"], UNION, mode=1)]), expected)


@pytest.mark.parametrize("end", [1.0, 0.5])
@pytest.mark.parametrize("name", ["sketch", "grey"])
def test_a_t2i_adapter_gives_diffusers_own_bits(
    pipe: Any, networks: dict[str, Any], name: str, end: float
) -> None:
    picture = PICTURE.convert("L") if name == "grey" else PICTURE
    expected = theirs(
        pipe, "StableDiffusionXLAdapterPipeline", {"adapter": networks[name]},
        image=picture, adapter_conditioning_scale=0.8, adapter_conditioning_factor=end,
    )  # fmt: skip
    assert torch.equal(ours(pipe, [held(networks[name], ADAPTER, end=end)]), expected)


def test_two_t2i_adapters_give_diffusers_own_bits(pipe: Any, networks: dict[str, Any]) -> None:
    both: Any = diffusers.MultiAdapter([networks["sketch"], adapter_for(pipe.unet, 6)])
    expected = theirs(
        pipe, "StableDiffusionXLAdapterPipeline", {"adapter": both},
        image=[PICTURE, OTHER], adapter_conditioning_scale=[0.8, 0.5],
    )  # fmt: skip
    controls = [
        held(networks["sketch"], ADAPTER),
        held(both.adapters[1], ADAPTER, OTHER, scale=0.5),
    ]
    assert torch.equal(ours(pipe, controls), expected)


def test_how_an_adapter_s_picture_lies_in_memory_is_part_of_its_bits(
    pipe: Any, networks: dict[str, Any]
) -> None:
    """Why `as_map` says it: the same numbers in rows of channels are rounded otherwise."""
    one = held(networks["sketch"], ADAPTER)
    assert one.pixels.stride() == (3 * SIDE * SIDE, 1, 3 * SIDE, 3)
    other = replace(one, pixels=one.pixels.contiguous())
    found = [one.network(each.pixels) for each in (one, other)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_adapter_holds_sides_that_are_no_multiple_of_its_own(networks: dict[str, Any]) -> None:
    for name, depth in (("sketch", 3), ("grey", 1)):
        pixels = as_map(PICTURE, (72, 88), networks[name])
        assert pixels.shape == (1, depth, 96, 80)
        assert torch.equal(pixels[..., 71], pixels[..., 79])


def test_each_part_of_a_control_shows(pipe: Any, networks: dict[str, Any]) -> None:
    """Else the comparisons above would not see that one is left out."""
    drawn = [
        ours(pipe, controls)
        for controls in (
            [],
            [held(networks["one"], CONTROLNET)],
            [held(networks["two"], CONTROLNET)],
            [held(networks["one"], CONTROLNET, OTHER)],
            [held(networks["one"], CONTROLNET, scale=0.5)],
            [held(networks["one"], CONTROLNET, start=0.5)],
            [held(networks["one"], CONTROLNET, end=0.5)],
            [held(networks["union"], UNION, mode=3)],
            [held(networks["union"], UNION, mode=3), held(networks["one"], CONTROLNET)],
            [held(networks["sketch"], ADAPTER)],
            [held(networks["sketch"], ADAPTER, OTHER)],
            [held(networks["sketch"], ADAPTER, scale=0.5)],
            [held(networks["sketch"], ADAPTER, start=0.5)],
            [held(networks["sketch"], ADAPTER), held(networks["grey"], ADAPTER)],
            [held(networks["sketch"], ADAPTER), held(networks["one"], CONTROLNET)],
        )
    ]
    for number, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:number]), number
    assert torch.equal(ours(pipe, [held(networks["one"], CONTROLNET, scale=0.0)]), drawn[0])


def test_edges_are_where_a_square_s_sides_are() -> None:
    picture = Image.new("L", (32, 32), 0)
    picture.paste(200, (8, 8, 24, 24))
    found = np.asarray(canny(picture, 100, 200))[..., 0]
    assert set(np.unique(found)) == {0, 255}
    rows, columns = np.nonzero(found)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) in (
        (7, 23, 7, 23),
        (8, 24, 8, 24),
    )
    assert found[10:22, 10:22].sum() == 0
    assert 50 <= (found > 0).sum() <= 70  # one pixel wide
    assert np.asarray(canny(picture, 900, 1800)).sum() == 0
    assert np.asarray(canny(Image.new("RGB", (16, 16)), 0, 0)).sum() == 0


def test_a_weak_edge_is_kept_where_it_joins_a_strong_one() -> None:
    picture = np.zeros((24, 40), np.uint8)
    picture[12:, :20] = 200  # strong, and to its right the same line, weaker
    picture[12:, 20:] = 40
    joined = np.asarray(canny(Image.fromarray(picture), 100, 600))[..., 0]
    assert joined[:, 30].any()
    alone = np.zeros((24, 40), np.uint8)
    alone[12:, 20:] = 40
    assert not np.asarray(canny(Image.fromarray(alone), 100, 600))[..., 0].any()


def test_a_long_line_costs_no_more_rounds_than_a_short_one() -> None:
    """A spiral of 200,000 px is joined within a second or two, not one pixel a round."""
    side = 1024
    picture = np.zeros((side, side), np.uint8)
    for start in range(0, side, 8):
        picture[start : start + 4, 4:-4] = 60
        edge = slice(-8, -4) if start // 8 % 2 else slice(4, 8)
        picture[start : start + 12, edge] = 60
    picture[0:4, 4:12] = 255
    found = np.asarray(canny(Image.fromarray(picture), 100, 900))[..., 0]
    assert (found > 0).sum() > 100_000


@pytest.fixture(scope="module")
def folder(
    worker: RunningWorker, networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As an operator has it, for the running worker's model."""
    assert worker.engine._ready is not None
    found = tmp_path_factory.mktemp("controls")
    unet = worker.engine._ready.model.pipe.unet
    controls_folder(found, unet)
    networks["one"].save_pretrained(found / "of another model")
    (found / "broken").mkdir()
    (found / "broken" / "config.json").write_text("{")
    (found / "empty").mkdir()
    adapter: Any = diffusers.T2IAdapter
    adapter(channels=[32] * 4, adapter_type="full_adapter_xl").save_pretrained(found / "adapter")
    return found


def test_a_folder_s_usable_networks_are_listed(worker: RunningWorker, folder: Path) -> None:
    assert worker.engine._ready is not None
    unet = worker.engine._ready.model.pipe.unet
    items = find_controls(folder, unet)
    assert [(item.name, item.about.kind, len(item.about.types)) for item in items] == [
        ("lines", CONTROLNET, 0), ("sketch", ADAPTER, 0), ("union", UNION, 6),
    ]  # fmt: skip
    shelf = Shelf(items, 1)
    assert isinstance(shelf.get("control", "lines"), ControlNetModel)
    assert isinstance(shelf.get("control", "sketch"), diffusers.T2IAdapter)
    shelf.verify_full()
    assert find_controls(None, unet) == []


@pytest.fixture(scope="module")
def provided(worker: RunningWorker, folder: Path) -> Iterator[RunningWorker]:
    config = settings(controls_dir=folder)
    with running_worker(config, Borrowing(config, worker)) as running:
        yield running


def test_over_http_a_drawing_is_held_and_the_next_one_is_not(
    provided: RunningWorker, files: FileServer
) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    image = {"url": files.add(buffer.getvalue(), "/map.png")}
    body: dict[str, Any] = {
        "prompt": "a red apple", "seed": 5, "steps": 3, "width": 64, "height": 64
    }  # fmt: skip
    control = {"model": "lines", "image": image}
    with httpx2.Client(base_url=provided.url, timeout=60) as http:
        offered = http.get("/health").json()["limits"]["controls"]
        assert [(one["name"], one["kind"]) for one in offered] == [
            ("lines", "controlnet"), ("sketch", "t2i_adapter"), ("union", "controlnet_union"),
        ]  # fmt: skip

        def drawn(**fields: Any) -> bytes:
            answer = http.post("/generate-image", json=body | fields)
            assert answer.status_code == 200, answer.text
            assert answer.json()["structure_clean"] is True
            return png_of(answer.json()).tobytes()

        free = drawn()
        one = drawn(controls=[control])
        told = body | {"controls": [control | {"canny": {}, "end": 0.7}]}
        picture = png_of(http.post("/generate-image", json=told).json())
        assert (
            'ControlNet 0: "Module: canny, Model: lines, Threshold A: 100, Threshold B: 200, '
            'Weight: 1, Guidance Start: 0, Guidance End: 0.7"'
        ) in picture.info["parameters"]
        edges = drawn(controls=[control | {"canny": {}, "end": 0.7}])
        twice = drawn(controls=[control], hires={"scale": 1.5, "steps": 1, "strength": 0.5})
        over = drawn(controls=[control], image=image, strength=0.7)
        sketch = {"model": "sketch", "image": image}
        sketched = drawn(controls=[sketch])
        odd = drawn(controls=[sketch, control], width=72, height=88)
        assert len({free, one, edges, twice, over, sketched, odd}) == 7
        assert drawn(controls=[sketch]) == sketched
        assert drawn() == free
        assert drawn(controls=[control]) == one
        for wrong, field in (
            ({"model": "depth"}, "controls[0].model"),
            ({"type": "canny"}, "controls[0].type"),
            ({"start": 0.5, "end": 0.5}, "controls[0]"),
            ({"scale": 3}, "controls[0].scale"),
            ({"canny": {"low": 200, "high": 100}}, "controls[0].canny"),
            ({"image": {"url": files.add(b"x", "/x")}}, "controls[0].image"),
        ):
            refused = http.post("/generate-image", json=body | {"controls": [control | wrong]})
            assert refused.status_code == 422, refused.text
            assert refused.json()["details"]["field"] == field
