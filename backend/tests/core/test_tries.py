"""Who tries in vain too often waits; nobody else does."""

from __future__ import annotations

from app.core.rates import Tries


def test_after_so_many_failures_a_name_waits_and_others_do_not() -> None:
    now = 100.0
    tries = Tries(3, 60, clock=lambda: now)
    for moment in (100.0, 110.0, 120.0):
        now = moment
        assert tries.wait("a") == 0
        tries.fail("a")
    assert tries.wait("a") == 40
    assert tries.wait("b") == 0
    now = 160.0
    assert tries.wait("a") == 0
    tries.fail("a")
    assert tries.wait("a") == 10


def test_a_flood_of_names_is_forgotten_from_the_oldest_on() -> None:
    tries = Tries(1, 60, clock=lambda: 0.0)
    for number in range(10_050):
        tries.fail(str(number))
    assert len(tries._failed) == 10_000
    assert (tries.wait("0"), tries.wait("10049")) == (0, 60)
