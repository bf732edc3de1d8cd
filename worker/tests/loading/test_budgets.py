"""Where a card's memory goes: what is left out first, and the table that the docs print."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from sdxl_worker.loading.budgets import GIB, MemoryPlan, plan_memory

DOCS = Path(__file__).resolve().parents[3] / "docs" / "worker-speed.md"
# SDXL in 16 bit, in bytes: all parts, and what LoRAs may change.
WEIGHTS, COPIED, LORAS = 6_940_000_000, 5_840_000_000, 4 * GIB


# Both copies of what SDXL's UNet multiplies in 8 bit.
FP8 = 2 * 1_872_035_840


def plan(gib: float, graphs: int | None = None, fp8: int = 0) -> MemoryPlan:
    return plan_memory(
        int(gib * GIB), weights=WEIGHTS, copied=COPIED, loras=LORAS, graphs=graphs, fp8=fp8
    )


def claims(one: MemoryPlan) -> int:
    kept = one.pristine + one.loras + one.operands + one.native_graphs + one.guest_graphs + one.fp8
    return one.weights + one.drawing + kept


@pytest.mark.parametrize("gib", [8, 12, 16, 22, 24, 32, 40, 48, 80, 141])
@pytest.mark.parametrize("graphs", [None, 0, 3 * GIB])
@pytest.mark.parametrize("fp8", [0, FP8])
def test_nothing_is_promised_twice_and_no_part_is_negative(
    gib: float, graphs: int | None, fp8: int
) -> None:
    found = plan(gib, graphs, fp8)

    assert claims(found) + found.left == found.total
    assert all(value >= 0 for name, value in vars(found).items() if name != "left")
    if found.left < 0:
        # A card for which even a picture is too much gets nothing extra.
        assert not found.native_graphs + found.guest_graphs + found.operands + found.fp8


def test_swaps_come_before_graphs_and_native_graphs_before_others() -> None:
    order = [plan(gib) for gib in (12, 20, 24, 26, 40, 80)]
    for smaller, larger in pairwise(order):
        assert smaller.pristine <= larger.pristine
        assert smaller.native_graphs <= larger.native_graphs or larger.pristine > smaller.pristine
        assert smaller.guest_graphs <= larger.guest_graphs or larger.pristine > smaller.pristine
    assert plan(12).pristine == 0
    assert plan(24).pristine == COPIED
    assert plan(80).guest_graphs == 8 * GIB


def test_a_card_of_24_gb_gives_up_some_of_its_cache_for_graphs_of_the_native_size() -> None:
    # What such a card reports is 22 to 23.6 GiB.
    found = plan(22)
    assert (found.native_graphs, found.left) == (2 * GIB, 0)
    assert GIB <= found.loras < LORAS
    assert plan(22, 0).loras == LORAS


def test_no_graphs_at_all_and_a_budget_of_one_s_own() -> None:
    assert (plan(80, 0).native_graphs, plan(80, 0).guest_graphs) == (0, 0)
    assert plan(80, GIB).guest_graphs == GIB


def row(gib: int) -> str:
    found = plan(gib)
    cells = (found.weights, found.pristine, found.loras, found.drawing, found.native_graphs,
             found.operands, found.guest_graphs, found.left)  # fmt: skip
    return f"| {gib} | " + " | ".join(f"{value / GIB:.1f}" for value in cells) + " |"


@pytest.mark.parametrize("gib", [22, 24, 40, 48, 80])
def test_the_table_in_the_docs_is_what_is_computed(gib: int) -> None:
    assert row(gib) in DOCS.read_text()


def test_copies_in_8_bit_are_there_as_a_whole_and_take_no_native_graph() -> None:
    for gib in (12, 20, 22, 24, 40, 80):
        with_fp8, without = plan(gib, fp8=FP8), plan(gib)
        assert with_fp8.fp8 in (0, FP8)
        assert with_fp8.native_graphs == without.native_graphs
        # A card without room for them is used as if they were not asked for.
        assert with_fp8.fp8 or with_fp8 == without
    assert [bool(plan(gib, fp8=FP8).fp8) for gib in (20, 22, 24, 40)] == [False, False, True, True]
    assert plan(24, fp8=FP8).loras >= GIB
    assert plan(24, 0, FP8).fp8 == FP8


@pytest.mark.parametrize("gib", [22, 24, 40, 48, 80])
def test_the_table_of_8_bits_in_the_docs_is_what_is_computed(gib: int) -> None:
    found = plan(gib, fp8=FP8)
    cells = (found.loras, found.native_graphs, found.fp8, found.operands, found.guest_graphs,
             found.left)  # fmt: skip
    row = f"| {gib} | " + " | ".join(f"{value / GIB:.1f}" for value in cells) + " |"
    assert row in DOCS.read_text()
