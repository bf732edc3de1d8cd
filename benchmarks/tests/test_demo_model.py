"""The committed small SDXL: what it is made of, and that it draws what the words say."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.process


FOLDER = Path(__file__).resolve().parents[2] / "demo_model"
MODEL = FOLDER / "sdxl-demo"
LORAS = FOLDER / "loras"


@pytest.fixture(scope="module")
def model() -> Any:
    from sdxl_worker.loading.pipeline import load_model
    from sdxl_worker.settings import Settings

    return load_model(Settings(base_model=str(MODEL), device="cpu", warmup=False))


@pytest.fixture(scope="module")
def pipe(model: Any) -> Any:
    return model.pipe


@pytest.fixture(scope="module")
def targets(pipe: Any) -> Any:
    from sdxl_worker.lora import lora_targets

    return lora_targets(pipe.unet, pipe.text_encoder, pipe.text_encoder_2)


def header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
    return found


def test_the_folder_is_small_half_precision_safetensors() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]

    assert sum(path.stat().st_size for path in files) < 25_000_000
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert len(weights) == 4
    for path in weights:
        kinds = {entry["dtype"] for name, entry in header(path).items() if name != "__metadata__"}
        assert kinds == {"F16"}, path.name


def test_the_module_names_are_sdxl_s(pipe: Any) -> None:
    from diffusers import UNet2DConditionModel

    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    with torch.device("meta"):
        real = UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    theirs = {name for name, _ in real.named_modules()}
    ours = {name for name, _ in pipe.unet.named_modules()}

    def without_depth(names: set[str]) -> set[str]:
        return {name for name in names if "transformer_blocks." not in name}

    assert without_depth(ours) == without_depth(theirs)
    assert ours <= theirs
    assert pipe.vae.config.latent_channels == 4


def test_any_text_can_be_encoded(pipe: Any) -> None:
    end = pipe.tokenizer.eos_token_id
    for text in (
        "naïve café",
        "日本語の絵",
        "🦊 emoji",
        "ALL CAPS",
        "x" * 500,
        "12345 @#%",
        "Ω≈ç√",
    ):
        ids = pipe.tokenizer(text).input_ids
        assert end not in ids[1:-1], text


@pytest.mark.parametrize(
    ("file", "spelling"),
    [("line-art", "kohya"), ("sepia", "peft"), ("sproutling", "kohya")],
)
def test_the_loras_fit_in_their_spellings(targets: Any, file: str, spelling: str) -> None:
    from sdxl_worker.lora import parse_lora

    path = LORAS / f"{file}.safetensors"
    lora = parse_lora(path, targets)
    report = lora.report(1.0)

    assert not lora.strays
    assert report.format.startswith(spelling)
    assert report.modules_matched > 50
    if spelling == "kohya":
        metadata = header(path)["__metadata__"]
        assert float(metadata["ss_network_alpha"]) != float(metadata["ss_network_dim"])
        assert json.loads(metadata["ss_tag_frequency"])


def test_the_character_s_lora_changes_both_text_encoders_and_names_its_word(targets: Any) -> None:
    from sdxl_contract.lora.trigger_words import trigger_words
    from sdxl_worker.lora import parse_lora

    path = LORAS / "sproutling.safetensors"
    roots = {layer.partition(".")[0] for layer in parse_lora(path, targets).layers}

    assert roots == {"unet", "text_encoder", "text_encoder_2"}
    assert trigger_words(header(path)["__metadata__"]) == ["sproutling"]


@pytest.mark.slow
@pytest.mark.long
def test_it_draws_what_the_words_say_and_the_lora_takes_the_colour_out(
    pipe: Any, targets: Any
) -> None:
    from benchmarks import evaluate_demo_model as evaluate
    from demo_model import references
    from demo_model.common import caption
    from sdxl_worker.lora import LoraPatcher, parse_lora

    known = references.load()
    pairs = evaluate.chosen_captions(known.names)[:8]
    prompts = [caption(*pair) for pair in pairs]
    patcher = LoraPatcher(targets)
    base = evaluate.generate(pipe, prompts, evaluate.SEED)
    with patcher.applied([(parse_lora(LORAS / "line-art.safetensors", targets), 1.0)]):
        styled = evaluate.generate(pipe, prompts, evaluate.SEED)
    again = evaluate.generate(pipe, prompts, evaluate.SEED)

    def right(pictures: list[Any], expected: list[str]) -> int:
        found = [
            known.names[references.nearest(picture, known.flat(background))[0]]
            for picture, (_, background) in zip(pictures, pairs, strict=True)
        ]
        return sum(a == b for a, b in zip(found, expected, strict=True))

    names = [name for name, _ in pairs]
    assert right(base, names) >= 6
    assert right(base, names[1:] + names[:1]) <= 1  # the control: the wrong words
    assert evaluate.saturation(styled) < 0.25 * evaluate.saturation(base)
    assert all(np.array_equal(a, b) for a, b in zip(base, again, strict=True))


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora", "locon"])
def test_the_other_algorithms_files_change_the_model_and_leave_no_trace(
    pipe: Any, targets: Any, kind: str
) -> None:
    from safetensors.torch import load_file, save

    from demo_model import make_test_loras
    from sdxl_worker.lora import LoraPatcher, parse_lora

    weights = load_file(MODEL / "unet" / "diffusion_pytorch_model.safetensors")
    file = save(make_test_loras.make(kind, weights, 1))
    lora = parse_lora(file, targets)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    patcher = LoraPatcher(targets)

    with patcher.applied([(lora, 1.0)]):
        changed = [n for n, v in pipe.unet.state_dict().items() if not torch.equal(v, before[n])]
        moved = [(pipe.unet.state_dict()[n] - before[n]).std() / before[n].std() for n in changed]

    assert not lora.strays
    assert lora.report(1.0).algorithm == kind
    assert len(changed) == lora.report(1.0).modules_matched > 100
    assert 0.005 < float(torch.stack(moved).median()) < 0.5
    assert all(torch.equal(v, before[n]) for n, v in pipe.unet.state_dict().items())


@pytest.mark.long
def test_the_control_network_holds_a_drawing_to_a_picture_s_edges(model: Any) -> None:
    """Of a name that its training never saw, without a word of it."""
    from benchmarks.demo.edges import agreement
    from demo_model import references
    from demo_model.common import HELD_OUT
    from sdxl_contract.drawing.edges import canny
    from sdxl_contract.request import GenerateRequest
    from sdxl_worker.auxiliary.provided import find_controls
    from sdxl_worker.auxiliary.shelf import Shelf
    from sdxl_worker.drawing.drawer import Drawer
    from sdxl_worker.run import Run

    assert "rabbit" in references.load().names[HELD_OUT]
    (item,) = find_controls(FOLDER / "controls", model.pipe.unet)
    assert (item.name, item.about.kind, item.about.types) == ("edges", "t2i_adapter", ())
    assert item.nbytes < 2_000_000
    drawer = Drawer(model, shelf=Shelf([item], 1 << 24))

    def drawn(prompt: str, seed: int, like: Any = None) -> Any:
        control = {"model": "edges", "image": {"url": "https://files.example/a.png"}, "canny": {}}
        request = GenerateRequest(
            prompt=prompt, seed=seed, steps=10, width=128, height=128,
            controls=[control] if like else [],
        )  # fmt: skip
        run = Run(request)
        run.control_pictures = [canny(like, 100, 200)] if like else []
        return drawer.draw(run)[0].image

    def agreed(one: Any, other: Any) -> float:
        return agreement(np.asarray(one), np.asarray(other))

    rabbit, cactus = (drawn(f"{name}, blue background", 1) for name in ("rabbit", "cactus"))
    free, held, otherwise = (drawn("", 2, like) for like in (None, rabbit, cactus))
    assert agreed(held, rabbit) > agreed(free, rabbit) + 0.2
    assert agreed(held, rabbit) > agreed(otherwise, rabbit) + 0.2  # the control: others' edges


@pytest.mark.long
def test_the_upscaler_comes_nearer_to_the_truth_than_lanczos(model: Any) -> None:
    """Of names that its training never saw, as they are and as the autoencoder leaves them."""
    from PIL import Image

    from benchmarks.demo.upscaler import coded, decibels, halved, repeated
    from demo_model import references
    from sdxl_worker.auxiliary.provided import find_upscalers
    from sdxl_worker.auxiliary.upscaling import enlarge

    (item,) = find_upscalers(FOLDER / "upscalers")
    assert (item.name, item.about.architecture, item.about.scale) == ("demo-2x", "compact", 2)
    assert item.nbytes < 150_000
    network: Any = item.load()
    truths = references.large()
    assert len(truths) == 15

    def gain(picture: Any, truth: Any) -> float:
        """What the network is nearer than Lanczos, in dB."""
        size, device = (references.LARGE,) * 2, torch.device("cpu")
        image = Image.fromarray(picture)
        ways = [np.asarray(enlarge(image, size, way, device)) for way in (network, None)]
        # The control: the measure orders two ways of which one is known to be worse.
        assert decibels(repeated(picture), truth) < decibels(ways[1], truth)
        return decibels(ways[0], truth) - decibels(ways[1], truth)

    clean = [gain(halved(one.pixels), one.pixels) for one in truths]
    left = [gain(coded(model.pipe.vae, halved(one.pixels)), one.pixels) for one in truths]
    assert np.mean(clean) > 6
    assert min(clean) > 4
    assert np.mean(left) > 0.4
    assert min(left) > 0


@pytest.mark.long
def test_the_adapter_draws_what_a_picture_shows_without_a_word(model: Any) -> None:
    """The pictures smaller, moved, on other backgrounds and one mirrored."""
    from PIL import Image

    from benchmarks.demo.adapter import ground_of, reference
    from demo_model import references
    from sdxl_contract.request import GenerateRequest
    from sdxl_worker.auxiliary.adapters import find_adapters
    from sdxl_worker.auxiliary.shelf import Shelf
    from sdxl_worker.drawing.drawer import Drawer
    from sdxl_worker.run import Run

    items = find_adapters(FOLDER / "adapters", model.pipe.unet)
    assert [item.name for item in items] == ["image_encoder", "pictures"]
    assert (items[1].about.kind, items[1].about.encoder_sha256) == ("ip_adapter", items[0].sha256)
    assert sum(item.nbytes for item in items) < 3_000_000
    drawer, known = Drawer(model, shelf=Shelf(items, 1 << 24)), references.load()

    def drawn(like: Any = None) -> Any:
        asked = [{"adapter": "pictures", "image": {"url": "https://files.example/a.png"}}]
        request = GenerateRequest(
            prompt="", seed=5, steps=10, width=128, height=128,
            references=asked if like is not None else [],
        )  # fmt: skip
        run = Run(request)
        run.reference_pictures = [Image.fromarray(like)] if like is not None else []
        return np.asarray(drawer.draw(run)[0].image)

    free, right, same_ground = drawn(), 0, 0
    pairs = (
        *(("red apple", "grey"), ("owl", "orange"), ("church", "blue")),
        *(("sunflower", "white"), ("zebra", "yellow")),
    )
    for name, ground in pairs:
        index = known.names.index(name)
        picture = drawn(reference(known, index, ground))
        right += references.nearest(picture, known.flat(ground))[0] == index
        same_ground += ground_of(picture) == ground
        # The control: the same seed without the picture.
        assert references.nearest(free, known.flat(ground))[0] != index
    assert right >= 4
    assert same_ground >= 3
