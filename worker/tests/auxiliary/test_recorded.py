"""Control networks and adapters drawn from recordings: the eager bytes, whatever comes and goes."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import ControlNetModel
from safetensors.torch import save_file

from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import DrawingReport
from sdxl_worker.auxiliary.adapters import find_adapters
from sdxl_worker.auxiliary.provided import find_controls
from sdxl_worker.auxiliary.shelf import Item, Shelf
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.model_calls import ModelCalls
from sdxl_worker.graphs.calls import StaticCalls
from sdxl_worker.run import Run
from testkit.auxiliary.adapters import adapters_folder, flat, ip_adapter
from testkit.auxiliary.controls import awake, controls_folder
from testkit.doubles.graphs import FakeRecorder
from testkit.worker import SIDE, RunningWorker, photo_like

pytestmark = pytest.mark.process

PICTURE = photo_like(SIDE)
# Wish → what the model draws eagerly, the same each time.
EAGER: dict[str, bytes] = {}
URL = {"url": "https://pictures.example.com/one.png"}
LINES: dict[str, Any] = {"controls": [{"model": "lines", "image": URL}]}
UNION: dict[str, Any] = {"controls": [{"model": "union", "type": "canny", "image": URL}]}
SKETCH: dict[str, Any] = {"controls": [{"model": "sketch", "image": URL}]}
BASE: dict[str, Any] = {"references": [{"adapter": "base", "image": URL}]}
PLUS: dict[str, Any] = {"references": [{"adapter": "plus", "image": URL}]}


@pytest.fixture(scope="module")
def items(worker: RunningWorker, tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    assert worker.engine._ready is not None
    unet = worker.engine._ready.model.pipe.unet
    controls = controls_folder(tmp_path_factory.mktemp("controls"), unet)
    adapters = adapters_folder(tmp_path_factory.mktemp("adapters"), unet)
    # Of the shapes that another one has.
    awake(ControlNetModel.from_unet(unet), 9).save_pretrained(controls / "edges")
    save_file(flat(ip_adapter(unet, 9, plus=False)), adapters / "other.safetensors")
    return [*find_controls(controls, unet), *find_adapters(adapters, unet)]


class Both:
    """Draws from recordings and eagerly, on one model, and holds one against the other."""

    def __init__(self, model: Any, items: list[Item], budget: int = 1 << 30) -> None:
        self.static = StaticCalls(FakeRecorder(), 10_000)
        self.shelf = Shelf(items, budget, gone=self.static.forget)
        self.drawer = Drawer(model, 1, ModelCalls(model.pipe, self.static), self.shelf)
        self._eager = Drawer(model, shelf=Shelf(items, 1 << 30))

    def draw(self, *wishes: dict[str, Any], **fields: Any) -> bytes:
        for wish in wishes:
            fields |= wish
        found, self.report = drawn(self.drawer, fields)
        key = repr(sorted(fields.items()))
        if key not in EAGER:
            EAGER[key] = drawn(self._eager, fields)[0]
        assert found == EAGER[key]
        return found

    def of(self, part: str) -> dict[str, int]:
        """How a part's calls of the last request were made."""
        return {how.value: n for (name, how, _), n in self.drawer.counts.items() if name == part}


@pytest.fixture
def both(worker: RunningWorker, items: list[Item]) -> Both:
    assert worker.engine._ready is not None
    return Both(worker.engine._ready.model, items)


def drawn(drawer: Drawer, fields: dict[str, Any]) -> tuple[bytes, DrawingReport]:
    values = {"prompt": "a red apple", "steps": 2, "width": SIDE, "height": SIDE, "seed": 5}
    run = Run(GenerateRequest(**(values | fields)))
    run.control_pictures = [PICTURE] * len(run.request.controls)
    run.reference_pictures = [PICTURE.rotate(90)] * len(run.request.references)
    found = drawer.draw(run)[0].image.tobytes()
    assert run.drawing is not None
    return found, run.drawing


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param(LINES, id="lines"),
        pytest.param(UNION, id="union", marks=pytest.mark.long),
        pytest.param(SKETCH, id="sketch", marks=pytest.mark.long),
        pytest.param(BASE, id="base"),
        pytest.param(PLUS, id="plus", marks=pytest.mark.long),
    ],
)
def test_each_kind_is_drawn_from_recordings_by_the_same_bytes(
    both: Both, wish: dict[str, Any]
) -> None:
    free = both.draw()
    assert both.draw(wish) != free
    assert (both.report.steps_captured, both.report.steps_replayed) == (1, 1)
    both.draw(wish, prompt="a blue pear", seed=6)
    assert (both.report.steps_captured, both.report.steps_replayed) == (0, 2)
    assert both.draw() == free
    assert both.report.steps_replayed == 2


def test_a_control_network_is_recorded_once_for_all_its_scales(both: Both) -> None:
    control = LINES["controls"][0]
    both.draw(LINES)
    assert both.of("control") == {"captured": 1, "replayed": 1}
    both.draw(controls=[control | {"scale": 0.3}])
    assert both.of("control") == {"replayed": 2}
    # Not called at steps that it does not hold.
    both.draw(controls=[control | {"end": 0.5}])
    assert both.of("control") == {"replayed": 1}
    assert both.report.steps_eager == 0


@pytest.mark.long
def test_adapters_are_told_apart_and_so_are_their_scales(both: Both) -> None:
    """The control of the key: each of these is another picture, and none draws the other's."""
    one = BASE["references"][0]
    pictures = {
        both.draw(BASE),
        both.draw(references=[one | {"scale": 0.4}]),
        both.draw(references=[one | {"end": 0.5}]),
        both.draw(PLUS),
        both.draw(references=[one, PLUS["references"][0]]),
        both.draw(references=[PLUS["references"][0], one]),
        both.draw(LINES, BASE),
        both.draw(UNION, BASE),
    }
    # The order in which two adapters are summed up is no other picture but for rounding.
    assert len(pictures) >= 7
    assert both.report.steps_eager == 0


def test_what_is_let_go_takes_its_recordings_along(
    worker: RunningWorker, items: list[Item]
) -> None:
    assert worker.engine._ready is not None
    cramped = Both(worker.engine._ready.model, items, budget=1)
    lines = cramped.draw(LINES)
    held = len(cramped.static)
    # Each network takes the place of the one before, in the budget and maybe in memory.
    for wish in (UNION, BASE, PLUS, LINES):
        cramped.draw(wish)
        assert cramped.report.steps_eager == 0
    assert cramped.draw(LINES) == lines
    assert cramped.of("control") == {"replayed": 2}
    cramped.shelf.clear()
    assert len(cramped.static) < held
    assert cramped.draw(LINES) == lines
    assert cramped.of("control") == {"captured": 1, "replayed": 1}


@pytest.mark.parametrize(
    ("one", "other"), [("lines", "edges"), ("base", "other")], ids=["controls", "adapters"]
)
def test_by_shapes_alone_one_network_would_draw_another_s_picture(
    both: Both, monkeypatch: pytest.MonkeyPatch, one: str, other: str
) -> None:
    """The control: networks of one kind that are told apart are right, and else are not."""

    def wish(name: str) -> dict[str, Any]:
        if one == "lines":
            return {"controls": [{"model": name, "image": URL}]}
        return {"references": [{"adapter": name, "image": URL}]}

    assert both.draw(wish(one)) != both.draw(wish(other))
    real = StaticCalls.call
    monkeypatch.setattr(
        StaticCalls, "call", lambda self, *args, of=(), **more: real(self, *args, **more)
    )
    both.draw(wish(one))
    with pytest.raises(AssertionError):
        both.draw(wish(other))
