"""The benchmark of one picture, on the CPU with the small model, so that it still runs on a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from benchmarks import gpu_generate
from benchmarks.gpu_check.sides import Clock, Plain, Task, Variant, Worker
from benchmarks.gpu_generate import (
    SMALL,
    Measured,
    difference,
    measure,
    rows,
    summarise,
    variants,
)
from sdxl_contract.prices import USD_PER_SECOND
from sdxl_worker.settings import Dtype

pytestmark = pytest.mark.process


SUMMARY = {
    "model", "device", "gpu", "usd_per_second", "prices_as_of", "size", "steps", "repeats", "cfg",
    "seed", "lora_rank", "torch", "diffusers", "cuda", "load_average",
    "variants",
}  # fmt: skip
ROW = {
    "name", "pictures", "seconds_per_image", "usd_per_image", "times_as_fast", "diff_max",
    "diff_mean", "diff_same_dtype_max", "diff_same_dtype_mean", "repeat_diff_max",
    "base_after_lora_diff_max", "swap_s", "swap", "load_s", "first_s", "peak_gb", "error",
}  # fmt: skip
CPU = torch.device("cpu")
FP32 = Dtype.FLOAT32


def task(model: Path = SMALL, device: torch.device = CPU) -> Task:
    return Task(str(model), device, size=64, steps=2, repeats=1, gpu="L40S")


@pytest.mark.long
def test_every_variant_gives_a_picture_and_the_last_line_is_the_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = "--small --device cpu --size 64 --steps 2 --repeats 1 --images 2 --without-compile"
    places = ["--pictures", str(tmp_path), "--json", str(tmp_path / "result.json")]
    vae = ["--vae", str(SMALL / "vae")]
    assert gpu_generate.main([*arguments.split(), *places, *vae]) == 0
    printed = capsys.readouterr().out.splitlines()
    summary = json.loads(printed[-1])
    assert json.loads((tmp_path / "result.json").read_text()) | {"load_average": 0} == summary | {
        "load_average": 0
    }
    assert set(summary) == SUMMARY
    found = {row["name"]: row for row in summary["variants"]}
    assert list(found) == [
        "diffusers-fp32", "diffusers-fp32-2-at-once", "diffusers-fp32-lora",
        "ours-fp32", "ours-fp32-other-vae", "ours-fp32-without-sdpa", "ours-fp32-channels-last",
        "ours-fp32-channels-last-2-at-once",
        "ours-fp32-channels-last-lora",
    ]  # fmt: skip
    for name, row in found.items():
        assert set(row) == ROW
        assert row["error"] is None
        assert row["pictures"] == (2 if "2-at-once" in name else 1)
        assert row["seconds_per_image"] > 0
        assert row["usd_per_image"] is None, "a CPU has no row in the price table"
        assert any(line.startswith(f"{name} ") for line in printed[:-1])
        # On one precision the worker's picture is diffusers' up to rounding.
        assert row["diff_max"] <= 2
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == (64, 64)
    assert set(found["ours-fp32-channels-last-lora"]["swap"]) == {"parse_s", "apply_s", "restore_s"}
    assert found["ours-fp32-channels-last-lora"]["base_after_lora_diff_max"] == 0
    assert found["ours-fp32-channels-last-lora"]["repeat_diff_max"] == 0
    assert found["ours-fp32"]["swap_s"] is None
    assert summary["usd_per_second"] is None


def test_a_run_that_is_cut_off_leaves_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw = Plain.draw

    def cut(self: Plain, variant: Variant) -> list[Image.Image]:
        if variant.at_once > 1:
            raise KeyboardInterrupt
        return draw(self, variant)

    monkeypatch.setattr(Plain, "draw", cut)
    arguments = "--small --device cpu --size 64 --steps 1 --repeats 1 --images 2 --json"
    with pytest.raises(KeyboardInterrupt):
        gpu_generate.main([*arguments.split(), str(tmp_path / "result.json")])
    (row,) = json.loads((tmp_path / "result.json").read_text())["variants"]
    assert row["name"] == "diffusers-fp32"
    assert row["seconds_per_image"] > 0


@pytest.mark.long
def test_attention_without_sdpa_is_the_plain_one_and_another_vae_another_picture(
    tmp_path: Path,
) -> None:
    vae: Any = diffusers.AutoencoderKL
    other = vae.from_pretrained(SMALL / "vae")
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.2
    other.save_pretrained(tmp_path / "vae")
    given = replace(task(), vae=str(tmp_path / "vae"))
    side = Worker(given, Variant(ours=True, dtype=FP32, sdpa=False))
    kinds = {type(one) for one in side._model.pipe.unet.attn_processors.values()}
    assert kinds == {AttnProcessor}
    ours = Variant(ours=True, dtype=FP32)
    one, without, lighter = measure(
        given, [ours, replace(ours, sdpa=False), replace(ours, vae=True)]
    )
    assert (difference(one.pictures, without.pictures) or (99,))[0] <= 2
    assert (difference(one.pictures, lighter.pictures) or (0,))[0] > 2


@pytest.mark.long
def test_equal_variants_draw_equal_pictures_and_another_seed_or_a_lora_does_not() -> None:
    base = Variant(ours=False, dtype=FP32)
    ours = Variant(ours=True, dtype=FP32)
    wanted = [
        base,
        ours,
        Variant(ours=True, dtype=FP32),
        Variant(ours=True, dtype=FP32, seed=8),
        Variant(ours=True, dtype=FP32, lora=True),
    ]
    _, one, again, other, lora = found = measure(task(), wanted)
    assert difference(one.pictures, again.pictures) == (0, 0)
    gap = difference(one.pictures, other.pictures)
    assert gap is not None
    assert gap[0] > 2
    changed = difference(one.pictures, lora.pictures)
    assert changed is not None
    assert changed[0] > 0, "the LoRA did nothing"
    listed = rows(task(), found)
    assert (listed[3]["diff_max"], listed[3]["diff_mean"]) == pytest.approx(gap, abs=1)
    assert listed[4]["diff_max"] is None, "without diffusers' own LoRA there is nothing to compare"


def test_a_difference_is_the_largest_and_the_mean_over_all_pictures() -> None:
    black, grey = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), (200, 0, 100))
    assert difference([black, black], [black, grey]) == (200, 50)
    assert difference([grey], [black, black]) == (200, 100)
    assert difference([], [black]) is None


def test_a_gpus_dollars_are_its_seconds_per_picture_times_the_table() -> None:
    gpu = task(device=torch.device("cuda"))
    variant = Variant(ours=True, dtype=Dtype.BFLOAT16, at_once=4)
    (row,) = rows(gpu, [Measured(variant, request_s=8.0)])
    assert row["seconds_per_image"] == 2
    assert row["usd_per_image"] == pytest.approx(2 * USD_PER_SECOND["L40S"])
    assert row["diff_max"] is None


def test_what_cannot_be_measured_is_a_row_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = Plain.draw

    def full(self: Plain, variant: Variant) -> list[Image.Image]:
        if variant.at_once > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory\nmore")
        return draw(self, variant)

    monkeypatch.setattr(Plain, "draw", full)
    plain = Variant(ours=False, dtype=FP32)
    found = measure(task(), [plain, Variant(False, FP32, at_once=2), plain])
    assert [one.error for one in found] == [None, "OutOfMemoryError: CUDA out of memory", None]
    row = summarise(task(), found)["variants"][1]
    assert row["pictures"] == 0
    assert row["seconds_per_image"] is None
    assert row["diff_max"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--size 60", "the nearest allowed is 64"),
        ("--steps 0", "--steps is 0: it must be from 1 to 100"),
        ("--images 1", "--images is 1: it must be from 2 to 8"),
        ("--repeats 0", "--repeats is 0"),
        ("--gpu RTX", "L40S"),
        ("--device tpu", "--device tpu cannot be used"),
        ("--device meta", "it must be auto, cpu, cuda or cuda:N"),
        ("--model somewhere", "not allowed with argument"),
        ("--vae ./missing", "--vae ./missing is neither a folder nor a hub name"),
        ("--json ./missing/result.json", "there is no folder missing"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        gpu_generate.main(["--small", "--device", "cpu", *arguments.split()])
    assert refused.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_clock_keeps_the_seconds_and_the_result() -> None:
    clock = Clock(CPU)
    assert clock.time("part", lambda: 3) == 3
    assert clock.parts["part"] >= 0


def test_on_a_gpu_the_clock_is_read_when_the_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append(str(device)))
    Clock(torch.device("cuda:1")).time("part", lambda: seen.append("work"))
    assert seen == ["cuda:1", "work", "cuda:1"]


def test_two_precisions_have_a_plain_peer_each_and_the_lora_comes_last_on_a_model() -> None:
    wanted = variants([Dtype.FLOAT16, Dtype.BFLOAT16], images=4, compiled=True, vae=True)
    names = [variant.name for variant in wanted]
    assert names == [
        "diffusers-fp16", "diffusers-fp16-4-at-once", "diffusers-fp16-lora",
        "diffusers-bf16", "diffusers-bf16-4-at-once", "diffusers-bf16-lora",
        "ours-fp16", "ours-bf16", "ours-fp16-other-vae", "ours-bf16-without-sdpa",
        "ours-bf16-channels-last", "ours-bf16-channels-last-4-at-once",
        "ours-bf16-channels-last-lora", "ours-bf16-channels-last-compiled",
        "ours-bf16-channels-last-compiled-4-at-once",
    ]  # fmt: skip
    for variant, after in pairwise(wanted):
        assert not variant.lora or after.loading != variant.loading


def test_a_precision_is_compared_with_the_first_and_with_its_own_peer() -> None:
    def one(ours: bool, dtype: Dtype, grey: int) -> Measured:
        picture = Image.new("RGB", (2, 2), (grey, grey, grey))
        return Measured(Variant(ours, dtype), pictures=[picture], request_s=float(grey))

    half, brain = Dtype.FLOAT16, Dtype.BFLOAT16
    listed = rows(task(), [one(False, half, 10), one(False, brain, 30), one(True, brain, 25)])
    assert [row["diff_max"] for row in listed] == [0, 20, 15]
    assert [row["diff_same_dtype_max"] for row in listed] == [0, 0, 5]
    assert [row["times_as_fast"] for row in listed] == pytest.approx([1, 10 / 30, 10 / 25])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none")
def test_every_variant_but_the_compiled_ones_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--small --device cuda --steps 2 --repeats 1 --gpu L40S --without-compile"
    arguments += f" --vae {SMALL / 'vae'}"
    assert gpu_generate.main(arguments.split()) == 0
    for row in json.loads(capsys.readouterr().out.splitlines()[-1])["variants"]:
        assert row["pictures"] > 0
        assert row["peak_gb"] > 0
        price = row["seconds_per_image"] * USD_PER_SECOND["L40S"]
        assert row["usd_per_image"] == pytest.approx(price, rel=0.01)


def test_a_model_that_is_no_folder_and_no_hub_name_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        gpu_generate.main(["--model", str(tmp_path / "missing"), "--device", "cpu"])
    assert "neither a folder nor a hub name" in " ".join(capsys.readouterr().err.split())
