"""What LoRAs for few steps call themselves, and what they want."""

from __future__ import annotations

import pytest

from sdxl_contract.lora.few_steps import few_steps


@pytest.mark.parametrize(
    ("text", "scheduler", "steps"),
    [
        ("sdxl_lightning_4step_lora", "euler_trailing", 4),
        ("SDXL-Lightning 8 steps", "euler_trailing", 8),
        ("lightning_2step", "euler_trailing", 2),
        ("Hyper-SDXL-8steps-lora", "ddim_trailing", 8),
        ("Hyper-SDXL-1step-CFG-lora", "ddim_trailing", 1),
        ("lcm-lora-sdxl", "lcm", 4),
        ("LCM_LoRA_Weights_SDXL", "lcm", 4),
        ("dmd2_sdxl_4step_lora_fp16", "lcm", 4),
        ("TCD-SDXL-LoRA", "tcd", 4),
    ],
)
def test_a_lora_that_says_what_it_is_suggests_its_sampler(
    text: str, scheduler: str, steps: int
) -> None:
    hint = few_steps(["", text])
    assert hint is not None
    assert (hint.scheduler, hint.steps, hint.cfg) == (scheduler, steps, 1.0)


@pytest.mark.parametrize(
    "text",
    ["", "hyperrealism", "hyper realistic skin", "lightning and thunder", "Lightning Bolt style",
     "helcmond", "stcd", "30 steps", "x" * 100_000 + "lcm"],
)  # fmt: skip
def test_others_suggest_nothing(text: str) -> None:
    assert few_steps([text]) is None
