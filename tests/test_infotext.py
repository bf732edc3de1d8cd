"""What is written into a picture's file is read back as it was asked for: by the page, which reads
it into a request, and by A1111's `png-info`, which reads its facts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from app.dialects.a1111.infotext import read_infotext
from sdxl_contract.request import GenerateRequest, scheduler_named
from sdxl_contract.result import LoraReport
from sdxl_worker.answering.image_file import (
    embedding_facts,
    hires_facts,
    parameters_text,
    picture_facts,
)
from sdxl_worker.embeddings import Embedding

STUDIO = Path(__file__).resolve().parent.parent / "studio"
SHA = "0123456789ab" + "0" * 52
URL = {"url": "https://x.example/a.png"}
LORA = {"url": URL["url"], "scale": -0.1234567, "name": "Ink", "sha256": SHA}
_READER = """
const fs = require('fs');
const ts = require('typescript');
const text = fs.readFileSync('src/drafting/infotext.ts', 'utf8');
const options = { module: 'commonjs', target: 'es2022' };
const found = { exports: {} };
new Function('exports', ts.transpileModule(text, { compilerOptions: options }).outputText)(
  found.exports);
const { readInfotext, samplerNamed } = found.exports;
const { texts, names, offered } = JSON.parse(fs.readFileSync(0, 'utf8'));
console.log(JSON.stringify({
  read: texts.map(readInfotext), named: names.map((name) => samplerNamed(name, offered)),
}));
"""
# Each says more than the ones before; together they say everything that a file tells.
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "words": {
        "prompt": 'a "red" apple,  on\nwhite\nSteps: 5, of stone',
        "negative_prompt": "blur, Negative prompt: no\nbad",
        "prompt_syntax": "a1111",
        "clip_skip": 2,
        "guidance_rescale": 0.123456789,
        "cfg": 4.1234567,
        "scheduler": "dpmpp_2m_karras",
    },
    "embeddings": {
        "prompt": "my-style.2, x_y",
        "embeddings": [{**URL, "token": "my-style.2"}, {**URL, "token": "x_y"}],
    },
    "loras": {"loras": [LORA, {**LORA, "name": None, "scale": 1.0}]},
    "hires": {
        "hires": {
            "scale": 1.7000001, "upscaler": "lanczos", "steps": 7, "strength": 0.4321,
            "prompt": 'a pear, "ripe"\nand: round', "negative_prompt": "leaf, stem",
            "cfg": 3.5, "scheduler": "euler_a",
        },
    },
    "second pass by a file": {"hires": {"upscaler": "4x Pear (v2)"}, "guidance_rescale": 1e-05},
    "over": {"image": URL, "strength": 0.4321},
    "masked": {
        "image": URL,
        "strength": 0.5,
        "mask": {**URL, "invert": True},
        "inpaint": {
            "area": "masked", "padding": 12, "blur": 9, "fill": "noise", "soft": True,
        },
    },
    "filled": {"image": URL, "mask": URL, "strength": 1, "inpaint": {"blur": 0, "fill": "nothing"}},
    "outpainted": {
        "image": URL,
        "strength": 0.95,
        "outpaint": {"left": 64, "bottom": 8, "overlap": 48},
        "inpaint": {"blur": 4, "fill": "original"},
    },
    "held": {
        "controls": [
            {"model": "edges", "image": URL, "canny": {"low": 50, "high": 90}, "scale": 0.7,
             "start": 0.1, "end": 0.876543},
            {"model": "xl union v1.0", "type": "depth", "image": URL},
        ],
        "references": [{"adapter": "plus-face", "image": URL, "scale": 0.6, "end": 0.5}],
    },
}  # fmt: skip


def request_of(asked: dict[str, Any]) -> GenerateRequest:
    return GenerateRequest.model_validate(
        {"prompt": "a fig", "seed": 7, "scheduler": "euler", "width": 64, "height": 48} | asked
    )


def text_of(request: GenerateRequest) -> str:
    """The text of the worker's file of `request`."""
    vectors = (torch.zeros(1, 1), torch.zeros(1, 1))
    embeddings = [Embedding(one.token, vectors, SHA) for one in request.embeddings]
    reports = [
        LoraReport(
            sha256=SHA, scale=one.scale, name=one.name, format="kohya", rank=4, modules_matched=1,
            modules_unmatched=[],
        )
        for one in request.loras
    ]  # fmt: skip
    return parameters_text(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        scheduler=request.scheduler.value,
        cfg=request.cfg,
        seed=request.seed or 0,
        size=(request.width or 0, request.height or 0),
        base_model="sdxl, base",
        loras=reports,
        more=picture_facts(request) | embedding_facts(embeddings),
    )


def without_files(value: Any) -> Any:
    """A request's values without what a file does not tell: where its pictures lie."""
    if isinstance(value, dict):
        kept = {name: without_files(one) for name, one in value.items()}
        return {n: one for n, one in kept.items() if n not in ("url", "image") and one is not None}
    return [without_files(one) for one in value] if isinstance(value, list) else value


def read(texts: list[str], names: list[str], offered: list[str]) -> dict[str, Any]:
    if shutil.which("node") is None or not (STUDIO / "node_modules" / "typescript").exists():
        pytest.skip("needs Node and `npm ci` in studio/")
    asked = json.dumps({"texts": texts, "names": names, "offered": offered})
    done = subprocess.run(
        ["node", "-e", _READER], input=asked, capture_output=True, text=True, cwd=STUDIO, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_page_reads_what_the_worker_writes() -> None:
    requests = {name: request_of(asked) for name, asked in ASKED.items()}
    found = read([text_of(one) for one in requests.values()], [], [])["read"]
    for (name, request), told in zip(requests.items(), found, strict=True):
        fields = (
            "prompt", "negative_prompt", "prompt_syntax", "steps", "cfg", "seed", "width", "height",
            "scheduler", "clip_skip", "guidance_rescale", "hires", "strength", "outpaint",
            "controls", "references",
        )  # fmt: skip
        given = without_files(request.model_dump(mode="json", exclude_unset=True))
        for field in fields:
            wanted, seen = given.get(field), told.get(field)
            if field in ("hires", "outpaint") and wanted is not None:
                wanted = {**wanted, **{n: seen[n] for n in seen.keys() - wanted.keys()}}
                defaults = getattr(request, field).model_dump(mode="json")
                assert all(defaults[n] == value for n, value in seen.items()), (name, field)
            if field in ("controls", "references"):
                wanted = [{"scale": 1, "start": 0, "end": 1, **one} for one in wanted or []]
            default = request.model_dump(mode="json")[field]
            assert seen == wanted or (wanted is None and seen == default), (name, field, seen)
        assert told["loras"] == [
            {"name": one.name or SHA[:12], "scale": one.scale, "sha256": SHA[:12]}
            for one in request.loras
        ]
        assert told["embeddings"] == [
            {"token": one.token, "sha256": SHA[:12]} for one in request.embeddings
        ]
        mask = None if request.mask is None else {"invert": request.mask.invert}
        assert told.get("mask") == mask
        wanted = given.get("inpaint") or {}
        assert told.get("inpaint", {}).items() >= wanted.items(), name
        assert told.get("inpaint", {}).keys() <= {"blur", *wanted}


def test_png_info_reads_what_the_worker_writes() -> None:
    for name, asked in ASKED.items():
        request = request_of(asked)
        facts = read_infotext(text_of(request))
        assert facts["Negative prompt"] == request.negative_prompt, name
        assert facts["Prompt"].startswith(request.prompt), name
        assert facts["Model"] == "sdxl, base"
        wanted = picture_facts(request)
        if request.hires is not None:
            wanted |= hires_facts(request.hires)
        assert facts.items() >= wanted.items(), name
    told = read_infotext(text_of(request_of(ASKED["loras"])))
    assert told["Lora hashes"] == f"Ink: {SHA[:12]}, {SHA[:12]}: {SHA[:12]}"


def test_samplers_of_other_tools_are_named_as_the_contract_names_them() -> None:
    names = [
        "DPM++ 2M Karras", "DPM++ 2M SDE", "Euler a", "Euler", "DPM++ SDE Karras", "UniPC",
        "Euler SGM Uniform", "DPM2 a", "euler_ancestral", "Heun", "no such",
        "EulerDiscreteScheduler",
    ]  # fmt: skip
    offered = ["euler", "euler_a", "euler_trailing", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde",
               "dpmpp_sde_karras", "unipc", "dpm2_a", "heun"]  # fmt: skip
    found = read([], names, offered)["named"]
    for name, seen in zip(names[:-1], found, strict=False):
        wanted = scheduler_named(name)
        assert seen == (None if wanted is None else wanted.value), name
    assert found[-1] is None  # the model's own: a class is none that can be asked for


def test_a1111s_own_text_is_read_as_its_program_means_it() -> None:
    text = (
        "a <lora:Ink:0.8> (fig)\nNegative prompt: bad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, "
        "Size: 1024x768, Model hash: 31e35c80fc, Model: sd_xl, Clip skip: 3, "
        'ControlNet 0: "Module: canny, Model: xl_canny [0123abcd], Weight: 0.5, '
        'Guidance Start: 0, Guidance End: 1, Threshold A: 80, Threshold B: 160", '
        "Version: v1.10.1\nTemplate: a fig"
    )
    [found] = read([text], [], [])["read"]
    assert found["prompt"] == "a (fig)"
    assert found["loras"] == [{"name": "Ink", "scale": 0.8}]
    assert (found["prompt_syntax"], found["scheduler"]) == ("a1111", "DPM++ 2M Karras")
    assert "clip_skip" not in found  # which its SDXL ignores
    [control] = found["controls"]
    assert control["model"] == "xl_canny"
    assert control["canny"] == {"low": 80, "high": 160}
