"""Where a card's memory goes: what is left out first, and the table that the docs print."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from sdxl_worker.loading.budgets import GIB, MemoryPlan, plan_memory

DOCS = Path(__file__).resolve().parents[3] / "docs" / "worker-speed.md"
# SDXL in 16 bit, in bytes: all parts, and what LoRAs may change.
WEIGHTS, COPIED, LORAS = 6_940_000_000, 5_840_000_000, 4 * GIB


def plan(gib: float, graphs: int | None = None) -> MemoryPlan:
    return plan_memory(int(gib * GIB), weights=WEIGHTS, copied=COPIED, loras=LORAS, graphs=graphs)


def claims(one: MemoryPlan) -> int:
    kept = one.pristine + one.loras + one.operands + one.native_graphs + one.guest_graphs
    return one.weights + one.drawing + kept


@pytest.mark.parametrize("gib", [8, 12, 16, 22, 24, 32, 40, 48, 80, 141])
@pytest.mark.parametrize("graphs", [None, 0, 3 * GIB])
def test_nothing_is_promised_twice_and_no_part_is_negative(gib: float, graphs: int | None) -> None:
    found = plan(gib, graphs)

    assert claims(found) + found.left == found.total
    assert all(value >= 0 for name, value in vars(found).items() if name != "left")
    if found.left < 0:
        # A card for which even a picture is too much gets nothing extra.
        assert not found.native_graphs + found.guest_graphs + found.operands


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
